"""Bad requests over all commands and options: kind, arguments, exit code, and a phrase of the answer.

`{photos}`, `{store}`, `{probe}` and `{runs}` stand for what `test_bad_requests.py` makes; files of other names lie beside them.
"""

from __future__ import annotations

from collections.abc import Iterator

import click

from layerbank import cli

Request = tuple[str, tuple[str, ...], int, str]

MODEL = ("--model", "timm/vit_tiny_patch16_224", "--weights", "random", "--image-size", "32", "--workers", "0")
DATA = ("--data", "folder:photos")
GOOD = {  # what a command needs, before an option is wrong
    "extract": (*MODEL, *DATA, "--levels", "last", "--kinds", "cls"),
    "plan": (*MODEL, *DATA, "--levels", "last", "--kinds", "cls"),
    "probe": (*MODEL, *DATA, "--probe", "ridge-cls"),
    "predict": ("--probe", "{probe}", *DATA),
    "export": ("{probe}", "--output", "exported"),
    "study": ("study.toml",),
    "report": ("{runs}",),
    "runs verify": ("{runs}",),
    "attention": ("{probe}",),
    "cache ls": (),
    "cache info": ("{store}",),
    "cache verify": ("{store}",),
    "cache repair": ("{store}",),
    "cache gc": (),
    "cache rm": ("{store}",),
    "cache to": ("{store}", "new.npz"),
    "cache from": ("a-file",),
    "cache export": ("{store}", "new.h5"),
    "cache import": ("a-file",),
    "cache upgrade": (),
    "cache merge": ("{store}",),
    "models": (),
    "datasets": (),
    "probes": (),
    "doctor": (),
}


def commands_of(group: click.Group, before: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands_of(command, f"{before}{name} ")
        else:
            yield before + name, command


def requests_of_options() -> Iterator[Request]:
    """What is wrong with any option of its type: no value, another type, out of its range, none of its choices."""
    for name, command in commands_of(cli.main):
        yield "unknown option", (*name.split(), *GOOD[name], "--no-such-option"), 2, "No such option"
        for one in command.params:
            if not isinstance(one, click.Option) or one.is_flag:
                continue
            wrong = {"": "an empty text"}
            if isinstance(one.type, click.IntRange):
                wrong |= {"1.5": "is not a valid integer", str((one.type.min or 0) - 1): "is not in the range"}
            elif isinstance(one.type, click.FloatRange):
                wrong |= {"x": "is not a valid float", "2": "is not in the range"}
            elif isinstance(one.type, click.Choice):
                wrong |= {"abacus": "is not one of" if len(one.type.choices) > 1 else "is not"}
            for value, phrase in wrong.items():
                kind = "empty text" if not value else "type or range"
                yield kind, (*name.split(), *GOOD[name], one.opts[0], value), 2, phrase
    for name in ("extract", "plan", "probe", "predict"):
        yield "left out", (name,), 2, "Missing option"
    for name in (
        "study",
        "attention",
        "cache info",
        "cache export",
        "cache verify",
        "cache merge",
        "cache rm",
        "cache to",
        "report",
    ):
        yield "left out", tuple(name.split()), 2, "Missing argument"


TABLE = """
machine  | extract --device cuda:99                    | 2 | a device that torch can use here
machine  | plan --device meta                          | 2 | a device that torch can use here
machine  | probe --device abacus                       | 2 | a device that torch can use here
machine  | predict --device mps:7                      | 2 | a device that torch can use here
machine  | study --device cuda:99                      | 2 | a device that torch can use here
machine  | cache repair --device abacus                | 2 | a device that torch can use here
model    | extract --model timm/vit_smal_patch16_224   | 2 | Did you mean 'vit_small_patch16_224'
model    | extract --model tinny/vit                   | 1 | from the hub
model    | extract --model vit_small                   | 2 | timm
model    | probe --model timm/resnet50                 | 2 | a vision transformer
model    | probe --model open_clip/ViT-B-99            | 2 | the name of a model of open_clip
model    | probe --model open_clip/ViT-B-16/nothing    | 2 | one of the tags
model    | plan --model torchhub:x:y                   | 2 | torchhub:OWNER/NAME:ENTRY
model    | extract --model demo/vit-x                  | 2 | demo/vit-s-focus
model    | models zzzzzzzz                             | 2 | no match
model    | extract --weights nowhere.pt                | 2 | no such file
model    | probe --weights a-file                      | 2 | a safetensors file
model    | predict --weights nowhere.pt                | 2 | no such file
model    | extract --weights random --weights random   | 2 | one for each --model
model    | extract --model timm/a --weights random --model timm/b     | 2 | one for each --model
model    | extract --weights-seed 9999999999999999999999999999999999999999 | 2 | weights_seed
model    | extract --image-size 33                     | 2 | a multiple of the patch size
model    | extract --tap-module blocks                 | 2 | {i}
model    | extract --tap-module blocks.{i}.nothing     | 2 | a module of that name
model    | extract --tap block --tap-module x.{i}      | 2 | one of the two
model    | extract --storage-dtype float8              | 2 | one of float16, float32, bfloat16
model    | probe --storage-dtype cls=float32,cls=float16 | 2 | twice
model    | plan --storage-dtype clss=float32           | 2 | kinds among
tokens   | extract --levels block.99                   | 2 | block.11
tokens   | extract --levels block.0-999999999          | 2 | block.
tokens   | extract --levels everything                 | 2 | Did you mean 'every'?
tokens   | extract --levels ,                          | 2 | final
tokens   | extract --kinds clss                        | 2 | cls, ap, grid1
tokens   | extract --kinds grid9                       | 2 | a grid of at most
tokens   | extract --kinds grid99999999999999999999    | 2 | cls, ap, grid1
tokens   | extract --kinds ,                           | 2 | at least one of each
tokens   | extract --kinds register                    | 2 | register tokens
tokens   | extract --parity-threshold 2                | 2 | from 0 to 1
tokens   | extract --parity-threshold nan              | 2 | from 0 to 1
tokens   | extract --view-scale nan                    | 2 | view_scale
machine  | extract --shard 4/4                         | 2 | 0 <= i < n
machine  | extract --shard x                           | 2 | 0 <= i < n
machine  | extract --shard 0/99999999999999999999      | 2 | 0 <= i < n
machine  | extract --shard 0/2 --processes 2           | 2 | one process for each shard
data     | extract --data photos                       | 2 | Did you mean folder:photos?
data     | extract --data csv:photos.csv               | 2 | nothing there
data     | extract --data foldr:photos                 | 2 | Did you mean 'folder'?
data     | extract --data folder:                      | 2 | an address after the colon
data     | extract --data folder:nowhere               | 2 | nothing there
data     | extract --data folder:a-file                | 2 | a file
data     | extract --data wds:photos                   | 2 | no split at all
data     | extract --data wds:{split}/{9..0}.tar       | 2 | a range like
data     | extract --data wds:x/{0..9}.tar             | 2 | {split}
data     | extract --data wds:{split}/{0..999999999}.tar | 2 | a range like
data     | extract --data wds:{split}/{0..9999}-{0..9999}.tar | 2 | more than
data     | extract --data hdf5:nowhere.h5              | 2 | {split}
data     | extract --data hdf5:{split}.h5              | 2 | no split at all
data     | extract --data hdf5:{split}.h5?image=x          | 2 | Did you mean 'images'?
data     | extract --data demo:digitz                  | 2 | one of
data     | extract --data demo:digits?train=x          | 2 | train=NUMBER
data     | extract --data demo:digits?train=99999999   | 2 | at most
data     | extract --data demo:digits?train=999999999999999999999 | 2 | train=NUMBER
data     | probe --data images:photos                  | 2 | images with labels
data     | predict --data csv:photos                   | 2 | a table with the extension
data     | predict --data images:nowhere               | 2 | nothing there
data     | extract --split validation                  | 2 | the splits test, train
data     | extract --split ../train                    | 2 | a name such as train
data     | probe --train-split nowhere                 | 2 | the splits test, train
data     | probe --test-split nowhere                  | 2 | the splits test, train
data     | predict --split nowhere                     | 2 | the splits test, train
data     | extract --views 2 --views-split other       | 2 | one of the splits
tokens   | probe --train-views 2                       | 2 | augmented views to train on
tokens   | probe --views 1 --train-views 2             | 2 | at most 1
probe    | probe --probe alff                          | 2 | Did you mean 'alf'?
probe    | probe --probe zzzzzzzzz                     | 2 | Choose one of them.
probe    | probe --probe ,                             | 2 | with commas between
probe    | probe --probe linear-cls-h4                 | 2 | a probe whose head has attention heads
probe    | probe --probe aat@12                        | 2 | 0 to 11
probe    | probe --probe aat@99999999999999999999      | 2 | a name that `layerbank probes` lists
probe    | probe --probe alf-top0                      | 2 | a name that `layerbank probes` lists
probe    | probe --probe ridge-cls-top5                | 2 | trained with several settings
probe    | probe --probe alf-h200 --no-extract         | 2 | Choose
probe    | probes zzzzzzzzz                            | 2 | Choose one of them.
probe    | probe --seed x                              | 2 | whole numbers from 0
probe    | probe --seed -1                             | 2 | whole numbers from 0
probe    | probe --seed 1.5                            | 2 | whole numbers from 0
probe    | probe --seed 9999999999999999999999999999999999999999 | 2 | whole numbers from 0
probe    | probe --num-heads 0                         | 2 | whole numbers from 1
probe    | probe --num-heads 4,,8                      | 2 | whole numbers from 1
probe    | probe --memory 4                            | 2 | which the program with its model takes
probe    | probe --memory lots                         | 2 | a size above zero
probe    | probe --memory 0GB                          | 2 | a size above zero
probe    | study --memory -1GB                         | 2 | a size above zero
probe    | probe --protocol fast                       | 2 | paper, quick, or a TOML file
probe    | probe --protocol nowhere.toml               | 2 | paper, quick, or a TOML file
probe    | probe --protocol a-file                     | 2 | TOML
probe    | probe --protocol latin.toml                 | 2 | UTF-8
probe    | probe --protocol absurd.toml                | 2 | an integer
probe    | probe --protocol digits.toml                | 2 | TOML
probe    | probe --protocol key.toml                   | 2 | Did you mean 'lrs'?
probe    | probe --protocol seed.toml                  | 2 | Give the seed with --seed
probe    | probe --protocol text.toml                  | 2 | numbers, and lists of numbers
output   | extract --cache a-file                      | 2 | is a file
output   | extract --cache a-file/caches               | 2 | a folder that can be written
output   | probe --runs a-file                         | 2 | is a file
output   | probe --runs a-file/runs                    | 2 | a folder that can be written
output   | study --runs a-file/runs                    | 2 | a folder that can be written
output   | extract --events a-file/x                   | 2 | a file that can be written
output   | extract --events photos                     | 2 | a folder, which is never replaced
output   | probe --events - --json                     | 2 | different files
output   | report --html photos                        | 2 | a folder, which is never replaced
output   | report --csv a-file/x                       | 2 | a file that can be written
output   | report --csv x --latex x                    | 2 | different files
output   | report --figures a-file                     | 2 | something else of that name
output   | report --figures -                          | 2 | a file or folder
output   | report --markdown /dev/null                 | 2 | a regular file to replace
output   | cache export {store} a-file/x               | 2 | a file that can be written
output   | cache export {store} -                      | 2 | a file or folder
study    | study papers/base.toml                      | 2 | Check the path.
study    | study smok                                  | 2 | Did you mean 'smoke'?
study    | study zzzzzzzz                              | 2 | Choose one of them.
study    | study a-file                                | 2 | TOML
study    | study latin.toml                            | 2 | UTF-8
study    | study empty.toml                            | 2 | no probes; no models; no data
study    | study wrong.toml                            | 2 | number of problems: 6
study    | study code.toml                             | 2 | no file can give this permission
study    | study study.toml --calibrate                | 2 | --dry-run
results  | report nowhere                              | 2 | no such folder
results  | report photos                               | 2 | results.jsonl
results  | runs verify nowhere                         | 2 | no such folder
results  | predict --probe nowhere                     | 2 | probe.json
results  | predict --probe a-file                      | 2 | is a file
results  | attention photos                            | 2 | attention map
results  | attention {probe}                           | 2 | attention map
store    | cache info nowhere                          | 2 | a token store
store    | cache info photos                           | 2 | a folder without a header
store    | cache info a-file                           | 2 | is a file
store    | cache verify nowhere                        | 2 | a token store
store    | cache repair photos                         | 2 | a folder without a header
store    | cache export photos x.h5                    | 2 | a folder without a header
store    | cache export {store} a-file                 | 2 | a path that does not exist
store    | cache import nowhere.h5                     | 2 | nothing
store    | cache import a-file                         | 2 | cannot be read as HDF5
store    | cache merge photos                          | 2 | a folder without a header
store    | cache upgrade photos                        | 2 | a folder without a header
store    | cache upgrade {store}                       | 2 | Nothing needs to be done
store    | cache gc --unfinished soon                  | 2 | days, hours or minutes
store    | cache gc --unfinished -1d                   | 2 | days, hours or minutes
store    | cache gc --unfinished 1                     | 2 | days, hours or minutes
command  | extrakt                                     | 2 | No such command
command  | cache list                                  | 2 | No such command
command  | runs                                        | 2 | Usage
command  | doctor now                                  | 2 | unexpected extra argument
command  | datasets photos                             | 2 | unexpected extra argument
command  | predict --probe {probe} {probe} --data images:photos | 2 | unexpected extra argument
"""

FILES = {
    "a-file": b"no TOML, no HDF5, no tensors",
    "study.toml": b"models = ['timm/vit_tiny_patch16_224']\ndata = ['folder:photos']\nprobes = ['linear-cls']\n",
    "latin.toml": b"# caf\xe9\n",
    "absurd.toml": b"min_steps = 1e23\nepochs = true\n",
    "digits.toml": b"min_steps = " + b"9" * 5000,
    "key.toml": b"lr = [0.1]\n",
    "seed.toml": b"seed = 1\n",
    "text.toml": b"lrs = ['x']\n",
    "empty.toml": b"",
    "wrong.toml": b"models = []\ndata = ['cvs:x']\nprobes = ['alff']\nseeds = [-1]\nworkers = 1.5\nprotocol = 'fast'\n",
    "code.toml": b"models = ['x']\ndata = ['folder:photos']\nprobes = ['alf']\nallow_code = ['x']\n",
}
LONG = "x" * 5000


def bad_requests() -> Iterator[Request]:
    """All of them."""
    yield from requests_of_options()
    for line in TABLE.strip().splitlines():
        kind, words, exit_code, phrase = (part.strip() for part in line.split("|"))
        yield kind, tuple(_complete(words.split())), int(exit_code), phrase
    for option in (
        "--model",
        "--data",
        "--cache",
        "--device",
        "--storage-dtype",
        "--tap-module",
        "--levels",
        "--kinds",
    ):
        yield "long text", (*_complete(["extract", option, LONG]),), 2, "characters)"
    for option in ("--probe", "--protocol", "--memory", "--seed", "--runs", "--train-split"):
        yield "long text", (*_complete(["probe", option, LONG]),), 2, "characters)"


def _complete(words: list[str]) -> list[str]:
    """The words of a command, with what it needs before them; an option that is given takes the place of that."""
    name = next((one for one in GOOD if words[: len(one.split())] == one.split()), None)
    if name is None:
        return words
    own = words[len(name.split()) :]
    if own and not own[0].startswith("-"):
        return words  # it has arguments of its own
    needed = list(GOOD[name])
    for option in {one for one in own if one.startswith("--")}:
        while option in needed and not (option == "--weights" and own.count(option) > 1):
            place = needed.index(option)
            del needed[place : place + 2]
    return [*name.split(), *needed, *own]
