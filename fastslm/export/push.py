"""``fastslm push``: upload an exported folder to the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path

from fastslm.commands.parser import command_parser

_DESCRIPTION = (
    "Upload a folder that `fastslm export` wrote to a model repository, which is made when it is not there. What is"
    " there already and equal is not sent again; weights and templates of an earlier export that the folder lacks are"
    " deleted there."
)
#: What would be read beside the new files: those of an earlier push that the folder lacks are deleted.
_OF_EXPORTS = [
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "model.safetensors.index.json",
    "checksums.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "added_tokens.json",
    "special_tokens_map.json",
]
_EXAMPLE = """\
example:
  hf auth login
  fastslm push my-model OWNER/my-model --private
"""


def main(arguments: Sequence[str]) -> int:
    """Upload a folder and print its address."""
    parser = command_parser("push", _DESCRIPTION, _EXAMPLE)
    parser.add_argument("folder", type=Path, metavar="OUT", help="exported folder")
    parser.add_argument("repo", metavar="REPO", help="OWNER/NAME on the hub")
    parser.add_argument(
        "--private", action="store_true", help="make a new repository private; stop if it exists and is public"
    )
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to, made if need be [main]")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--message", default="Upload model with fastslm", help="of the commit [%(default)s]")
    given = parser.parse_args(arguments[1:])

    wanted = {name: getattr(given, name) for name in ("private", "revision", "create_pr", "message")}
    print(push(given.folder, given.repo, **wanted))
    return 0


def push(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str = "Upload model with fastslm",
) -> str:
    """Upload a folder and return the address of the commit or pull request.

    Raises:
        CheckpointError: the folder is no exported model, or damaged.
        HubError: the hub cannot be reached, or refuses; or ``private`` is wanted, and the repository is public.
    """
    from huggingface_hub import HfApi

    from fastslm.errors import CheckpointError, HubError
    from fastslm.export.checksum import verify_checksums, verify_list

    missing = [name for name in ("config.json", "tokenizer.json", "README.md") if not (folder / name).is_file()]
    if missing or not list(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} is no exported model: it lacks {', '.join(missing) or 'safetensors'}. 'fastslm export' writes"
            " one."
        )
    verify_list(folder, code=True)
    verify_checksums(folder)
    api = HfApi()
    try:
        made = api.create_repo(repo, private=private, exist_ok=True, repo_type="model")
        if private and not api.repo_info(made.repo_id, repo_type="model").private:
            raise HubError(
                f"{made.repo_id} at {api.endpoint} exists and is public, and --private makes new repositories private"
                " only: nothing was uploaded. Make it private in its settings, give another name, or leave --private"
                " out to publish."
            )
        if revision and not create_pr and not revision.startswith("refs/"):
            api.create_branch(made.repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            delete_patterns=_OF_EXPORTS,
            ignore_patterns=["__pycache__/*", ".*"],
        )
    except HubError:
        raise
    except Exception as error:  # huggingface_hub lets errors of its HTTP library through, which is another every year
        of_http = type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3"))
        if not of_http and not isinstance(error, (OSError, ValueError)):
            raise
        raise HubError(_explained(error, repo, api.endpoint)) from error
    return str(commit.pr_url or commit.commit_url)


def _explained(error: Exception, repo: str, endpoint: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if status in (401, 403):
        return f"{endpoint} does not let you write to {repo}: log in with 'hf auth login', or set HF_TOKEN. ({first})"
    return f"cannot push to {repo} at {endpoint}: {first}"
