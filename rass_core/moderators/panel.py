"""The panel of moderators: several vote whether a prompt is truly benign, every vote kept."""

from collections import Counter
from collections.abc import Sequence

from rass_core.errors import JudgeError
from rass_core.judges.base import JudgeContext, built
from rass_core.judges.panel import PANEL
from rass_core.models.chat_client import Complete
from rass_core.models.failures import MAX_FAILED, Failures
from rass_core.models.retrying import Say, ignored
from rass_core.moderators.base import MODERATORS, KnowsPrompts, Moderator, NamesRequests, vote_of
from rass_core.moderators.settings import ModeratorConfig
from rass_core.vocabulary import Verdict


class ModeratorPanel:
    """Several moderators, one verdict, every vote kept: benign only with the quorum.

    Args:
        members: The moderators.
        quorum: Votes for benign that a prompt needs.
        max_failed_share: Share of the prompts; a member that fails on more is an error.
        say: Gets a line for each member that gives no verdict on some prompts.

    Raises:
        JudgeError: No members, two of one name, or a quorum that cannot be reached.
    """

    name = PANEL

    def __init__(
        self, members: Sequence[Moderator], quorum: int, max_failed_share: float = MAX_FAILED, say: Say = ignored
    ) -> None:
        names = [member.name for member in members]
        if not names or len(set(names)) < len(names) or PANEL in names:
            raise JudgeError(f"moderators: {', '.join(names) or 'none'}; name at least one, and none twice")
        if not 1 <= quorum <= len(names):
            raise JudgeError(f"moderators: a quorum of {quorum} among {len(names)}; take 1 to {len(names)}")
        self._members, self._quorum = members, quorum
        self._max_failed_share, self._say = max_failed_share, say

    @property
    def members(self) -> frozenset[str]:
        """Names of the moderators."""
        return frozenset(member.name for member in self._members)

    def __call__(self, prompts: Sequence[str], languages: Sequence[str]) -> list[Verdict]:
        """Return what the members say together."""
        return [said[PANEL] for said in self.words(prompts, languages)]

    def requests(self, prompts: Sequence[str], languages: Sequence[str]) -> list[str | None]:
        """Name what each prompt asks for, where a member knows its translations and rewordings; else None."""
        for member in self._members:
            if isinstance(member, NamesRequests):
                return member.requests(prompts, languages)
        return [None] * len(prompts)

    def knows(self, prompts: Sequence[str], languages: Sequence[str]) -> list[bool]:
        """Return whether a member was fitted on each prompt, (n,); its verdict on it is no estimate of its error."""
        known = [False] * len(prompts)
        for member in self._members:
            if isinstance(member, KnowsPrompts):
                known = [a or b for a, b in zip(known, member.knows(prompts, languages), strict=True)]
        return known

    def failures(self, n_all: int) -> Failures:
        """Return counts over so many prompts of where a member gives no verdict."""
        return Failures(n_all, self._max_failed_share, "moderator.max_failed_share")

    def votes(
        self, prompts: Sequence[str], languages: Sequence[str], failures: Failures | None = None
    ) -> dict[str, list[Verdict]]:
        """Return each member's verdicts.

        Args:
            failures: Where these are a part of more: counts over all of it, of which the caller says the lines.

        Raises:
            JudgeError: A member failed on more than its share of the prompts.
        """
        counted = failures or self.failures(len(prompts))
        votes = {}
        for member in self._members:
            votes[member.name] = member(prompts, languages)
            counted.add(member.name, votes[member.name])
        for line in counted.lines("prompts") if failures is None else []:
            self._say(line)
        return votes

    def words(
        self, prompts: Sequence[str], languages: Sequence[str], failures: Failures | None = None
    ) -> list[dict[str, Verdict]]:
        """Return, for each prompt, who said what: each member and the quorum; arguments and errors as of `votes`."""
        votes = self.votes(prompts, languages, failures)
        ballots = [{name: given[i] for name, given in votes.items()} for i in range(len(prompts))]
        return [{**ballot, PANEL: self._count(ballot)} for ballot in ballots]

    def _count(self, ballot: dict[str, Verdict]) -> Verdict:
        kinds = Counter(vote_of(vote) for vote in ballot.values())
        n_cast = kinds.total() - kinds["unscored"]
        benign, harmful = kinds["benign"], kinds["harmful"]
        if 2 * kinds["incoherent"] > n_cast:
            outcome = "incoherent"
        elif harmful and (harmful >= benign or benign < self._quorum):
            outcome = "harmful"
        elif benign >= self._quorum:
            sounds_harmful = any(vote.outcome == "pseudo_harmful" for vote in ballot.values())
            outcome = "pseudo_harmful" if sounds_harmful else "harmless"
        else:
            outcome = "unscored"
        votes = ", ".join(f"{name} {vote.outcome}" for name, vote in ballot.items())
        reason = f"{benign} of {len(ballot)} benign, quorum {self._quorum}: {votes}"
        score = None if outcome in ("incoherent", "unscored") else benign / n_cast
        if outcome != "unscored":
            return Verdict(outcome, score, reason)
        declined = next((vote.declined for vote in ballot.values() if vote.declined is not None), None)
        return Verdict(outcome, score, reason, any(vote.has_failed for vote in ballot.values()), declined=declined)


def moderator_panel_of(
    config: ModeratorConfig, generator: Complete | None = None, say: Say = ignored
) -> ModeratorPanel:
    """Return the moderators of a configuration, built.

    Args:
        config: The configuration's `moderator`.
        generator: Asks the generator through its own engine, for an llm moderator without an endpoint.
        say: Gets the quorum's lines and those of endpoints, such as that one is waited for.

    Raises:
        JudgeError: As `ModeratorPanel`, or an llm moderator has neither an endpoint nor a generator.
    """
    context = JudgeContext(generator, say)
    members: list[Moderator] = built(MODERATORS, config.members, context, ("name",))
    return ModeratorPanel(members, config.quorum or len(members) // 2 + 1, config.max_failed_share, say)
