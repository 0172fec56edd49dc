"""Options of a judge, in the query of its URL."""

from __future__ import annotations

from aift_ray.rewards import options
from aift_ray.rewards.options import Option

OPTIONS = {
    "model": Option(options.text, "name of the model that judges"),
    "rubric": Option(options.text, "what makes an answer good"),
    "lowest": Option(options.whole(0), "grade of the worst answer; default: 1"),
    "highest": Option(options.whole(1), "grade of the best answer; default: 10"),
    "column": Option(options.text, "column with a right answer, which the judge is shown"),
    "key_file": Option(options.text, "file that holds the API key; default: JUDGE_API_KEY"),
    "max_concurrent": Option(options.whole(1), "requests at a time; default: 16"),
}
