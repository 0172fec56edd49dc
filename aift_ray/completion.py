"""Completion of the command line: `aift-ray completion bash`, `zsh` or `fish`."""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Sequence

from aift_ray.errors import ConfigError, Problem
from aift_ray.utils.exit_status import guarded

SHELLS = ("bash", "zsh", "fish")
USAGE = """usage: aift-ray completion bash|zsh|fish

Print what makes a shell complete verbs, flags and words.

bash, in ~/.bashrc:
  source <(aift-ray completion bash)
zsh, in ~/.zshrc, after compinit:
  source <(aift-ray completion zsh)
fish, once:
  aift-ray completion fish \\
    > ~/.config/fish/completions/aift-ray.fish"""


def run(argv: Sequence[str]) -> int:
    """Print the script; the exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if list(argv) not in ([shell] for shell in SHELLS):
        given = " ".join(argv)
        near = difflib.get_close_matches(argv[0], SHELLS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"give one of {', '.join(SHELLS)}"
        raise ConfigError([Problem(f"completion {given}", "is no shell that is known", hint)])
    print(_fish() if argv[0] == "fish" else _bash(argv[0] == "zsh"))
    return 0


def _flags() -> dict[str, dict[str, tuple[tuple[str, ...], str]]]:
    """By verb and flag: the words that it takes, and what it means."""
    from aift_ray import config
    from aift_ray.config.cache_config import CacheConfig
    from aift_ray.config.help import flags
    from aift_ray.models.catalog import CATALOG

    verbs = {
        "train": config.RunConfig,
        "tune": config.SweepConfig,
        "quantize": config.QuantizeConfig,
        "serve": config.ServeConfig,
        "evaluate": config.EvaluateConfig,
        "export": config.ExportConfig,
        "merge": config.MergeConfig,
        "plan": config.PlanConfig,
        "doctor": config.DoctorConfig,
        "cache": CacheConfig,
    }
    found: dict[str, dict[str, tuple[tuple[str, ...], str]]] = {}
    for verb, settings in verbs.items():
        of_verb = found.setdefault(verb, {})
        for flag in flags(settings):
            words = tuple(CATALOG) if flag.name == "model" else flag.choices
            if flag.field.annotation is bool:
                words = ("true", "false")
            # one spelling of each: the short one, and the whole one where it names a section
            names = {flag.short or flag.name, *([flag.name] if "." in flag.name else [])}
            for name in sorted(names, key=len):
                of_verb[name] = words, flag.field.description or ""
        own = {"config": "YAML file of settings", "dry-run": "show it, and do nothing"}
        own |= {"help": "the common settings", "help-all": "every setting"}
        of_verb |= {name: ((), meaning) for name, meaning in own.items()}
    return found


def _bash(zsh: bool) -> str:
    verbs = _flags()
    words, names = [], []
    for verb, flags in verbs.items():
        names.append(f"    {verb}) words={shlex.quote(' '.join(f'--{name}' for name in flags))};;")
        for name, (choices, _) in flags.items():
            if choices:
                kinds = f"-W {shlex.quote(' '.join(choices))}"
                # a model may be a folder too
                kinds += " -d" if name == "model" else ""
                reply = f'COMPREPLY=($(compgen {kinds} -- "$cur"))'
                words.append(f"    '{verb} --{name}') {reply}; return;;")
    lines = [
        "# made by aift-ray completion",
        *(["autoload -U +X bashcompinit && bashcompinit"] if zsh else []),
        "_aift_ray() {",
        '  local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}" words=""',
        '  local verb="${COMP_WORDS[1]}"',
        # bash takes --flag=word as three words
        '  if [ "$cur" = "=" ]; then cur=""',
        '  elif [ "$prev" = "=" ]; then prev="${COMP_WORDS[COMP_CWORD-2]}"; fi',
        "  COMPREPLY=()",
        '  if [ "$COMP_CWORD" -eq 1 ]; then',
        f"    COMPREPLY=($(compgen -W '{' '.join((*verbs, 'completion'))}' -- \"$cur\")); return",
        "  fi",
        '  case "$verb $prev" in',
        *words,
        f"    'completion completion') COMPREPLY=($(compgen -W '{' '.join(SHELLS)}' -- \"$cur\"));"
        " return;;",
        "  esac",
        '  case "$verb" in',
        *names,
        "  esac",
        '  case "$cur" in',
        '    -*) COMPREPLY=($(compgen -W "$words" -- "$cur"));;',
        '    *) COMPREPLY=($(compgen -f -- "$cur"));;',
        "  esac",
        "}",
        "complete -o filenames -F _aift_ray aift-ray",
    ]
    return "\n".join(lines)


def _fish() -> str:
    verbs = _flags()
    lines = ["# made by aift-ray completion"]
    for verb in (*verbs, "completion"):
        lines.append(f"complete -c aift-ray -f -n __fish_use_subcommand -a {verb}")
    for verb, flags in verbs.items():
        seen = f"complete -c aift-ray -n '__fish_seen_subcommand_from {verb}'"
        for name, (choices, meaning) in flags.items():
            line = f"{seen} -l {name} -d {shlex.quote(meaning)}"
            if choices:
                # a model may be a folder too
                files = "-r" if name == "model" else "-x"
                line += f" {files} -a {shlex.quote(' '.join(choices))}"
            elif name not in ("dry-run", "help", "help-all"):
                line += " -r"
            lines.append(line)
    shells = " ".join(SHELLS)
    lines.append(
        f"complete -c aift-ray -f -n '__fish_seen_subcommand_from completion' -a '{shells}'"
    )
    return "\n".join(lines)


def main() -> None:
    """Entry point of `python -m aift_ray.completion`."""
    sys.exit(guarded(run, sys.argv[1:]))


if __name__ == "__main__":
    main()
