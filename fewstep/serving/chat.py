"""Pictures in a conversation: a language model asks for them by tags, a session draws them and remembers the last.

The language model is prompted, not trained: it is told of two tags (`fewstep.serving.tags`), and what it writes between
them goes to one of two backends. One draws a new picture; one changes the last. The session keeps the conversation, the
last picture, its description and its seed. Any chat endpoint will do: a callable from messages to text. What it answers
is read, never run: no part of it is evaluated, or opened as a path or an address. Source: Mini-DALLE3: Interactive Text
to Image by Prompting Large Language Models (Lai et al., 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from fewstep.core.arguments import check_kind, check_whole
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.serving.tags import LONGEST, Call, Parser, Segment, Text

METHODS = (
    Method(
        "mini-dalle3",
        kind="chat",
        paper="Mini-DALLE3: Interactive Text to Image by Prompting Large Language Models (Lai et al., 2023)",
        arxiv="2310.07653",
        claim="with the conversation and the last picture kept, more of the edits asked for are seen than without",
        use="Session",
    ),
)

SAID = 4000  # characters of what a user says
ANSWERED = 16000  # characters of an answer that are read
PICTURES = 4  # of one answer
REMEMBERED = 40  # messages, beside the state that is always told
STRENGTH = 0.75  # of an edit: colours and sizes change from 0.7 on, and places are kept up to 0.8
STATE, FAILED = "The last picture shows: ", "The last description could not be drawn: "

PROMPT = """You talk with a user and can show pictures.
To draw a new picture, write <image>DESCRIPTION</image> in your answer.
To change the last picture, write <edit>DESCRIPTION</edit>.
A description says all that the picture shows, also what stays as it was: whoever draws sees nothing else of the
conversation. It has at most {longest} characters. Never put one tag within another, and draw at most {pictures}
pictures in an answer. Text outside the tags is shown to the user as it is; do not speak of the tags."""

REFINE = """Rewrite the description of a picture so that whoever draws it draws it well: concrete, complete, in one
sentence, nothing added that was not meant. Answer with the description and nothing else."""

Message = dict[str, str]
# Messages, each with a "role" and its "content", to an answer, whole or in pieces.
Complete = Callable[[Sequence[Message]], str | Iterable[str]]


@dataclass(frozen=True)
class Picture:
    """A picture `(C, H, W)` of a session: its number, what it shows, what was asked for before that was refined, its
    seed, and whether it was made anew ("image") or from the one before ("edit")."""

    image: Tensor
    number: int
    description: str
    asked: str
    seed: int
    kind: Literal["image", "edit"]


@dataclass(frozen=True)
class Problem:
    """Why a part of an answer became no picture, for the user to read."""

    text: str


# (description, seed) to a picture (C, H, W); (the last picture, its new description) to what it becomes.
Generate = Callable[[str, int], Tensor]
Edit = Callable[[Picture, str], Tensor]


class Session:
    """One conversation. Given the answers, its pictures follow from `seed`: new picture k has seed + k, counted from 0,
    and an edit has the seed of the picture that it changes.

    Args:
        complete: the language model.
        generate, edit: the backends; `drawn_by` makes both of a model. Without `edit`, edits are drawn anew. A
            ValueError of theirs is told to the user, and to the language model in the next turn.
        language: what descriptions must be like, told to the language model.
        refine: ask the language model, by a second prompt, to rewrite every description before it is drawn.

    A session is for one thread at a time.
    """

    def __init__(
        self,
        complete: Complete,
        generate: Generate,
        edit: Edit | None = None,
        *,
        language: str = "",
        refine: bool = False,
        seed: int = 0,
    ) -> None:
        self.complete, self.generate, self.edit = complete, generate, edit
        self.language, self.refine, self.seed = language, refine, check_whole("seed", seed, 0)
        self.last: Picture | None = None
        self.history: list[Message] = []
        self._drawn = self._anew = 0
        self._failed = ""

    def messages(self) -> list[Message]:
        """What the language model is told: the tags, the language, what the last picture shows, the conversation."""
        parts = [PROMPT.format(longest=LONGEST, pictures=PICTURES), self.language]
        parts += [f"{STATE}{self.last.description}"] if self.last is not None else []
        parts += [f"{FAILED}{self._failed}"] if self._failed else []
        system = {"role": "system", "content": "\n".join(part for part in parts if part)}
        return [system, *self.history]

    def say(self, text: str) -> list[Text | Picture | Problem]:
        """The answer to what a user says: texts, pictures and problems in order. Raises as `stream`."""
        found: list[Text | Picture | Problem] = []
        for part in self.stream(text):
            if isinstance(part, Text) and found and isinstance(found[-1], Text):
                part = Text(found.pop().text + part.text)  # type: ignore[union-attr]  # it is a Text
            found.append(part)
        return found

    def stream(self, text: str) -> Iterator[Text | Picture | Problem]:
        """The answer as it comes; a picture comes once it is drawn.

        What has come is remembered also if the endpoint fails, or nobody reads on.

        Raises:
            ValueError: nothing said, more than 4000 characters, an endpoint that answers something else than text.
        """
        check_kind("what is said", text, str)
        if not text.strip() or len(text) > SAID:
            raise ValueError(f"say something, in at most {SAID} characters, got {len(text)}")
        self._remember("user", text)
        asked = self.messages()
        self._failed = ""
        parser, read = Parser(), list[str]()
        pictures = 0
        try:
            for segment in self._segments(asked, parser, read):
                if isinstance(segment, Text):
                    yield segment
                elif pictures == PICTURES:
                    yield Problem(f"an answer has at most {PICTURES} pictures: {segment.description!r} was not drawn")
                else:
                    pictures += 1
                    yield self._drawn_for(segment)
            yield from map(Problem, parser.problems)
        finally:
            if read:
                self._remember("assistant", "".join(read))
            else:
                self.history.pop()  # what was not answered was not said

    def _segments(self, asked: Sequence[Message], parser: Parser, read: list[str]) -> Iterator[Segment]:
        for piece in bounded(self.complete(asked), ANSWERED):
            read.append(piece)
            yield from parser.feed(piece)
        yield from parser.close()

    def _remember(self, role: str, content: str) -> None:
        self.history = [*self.history, {"role": role, "content": content}][-REMEMBERED:]

    def _drawn_for(self, call: Call) -> Picture | Problem:
        asked = call.description
        said = self._refined(asked) if self.refine else asked
        last = self.last if call.kind == "edit" and self.edit is not None else None
        try:
            if last is not None and self.edit is not None:
                seed, image = last.seed, self.edit(last, said)
            else:
                seed = self.seed + self._anew
                image = self.generate(said, seed)
        except ValueError as error:
            self._failed = f"{said} ({error})"
            return Problem(f"{said!r} could not be drawn: {error}")
        self._anew += last is None
        self.last = Picture(image, self._drawn, said, asked, seed, "image" if last is None else "edit")
        self._drawn += 1
        return self.last

    def _refined(self, description: str) -> str:
        """The description rewritten; as it was, where the answer is none."""
        system = "\n".join(filter(None, (REFINE, self.language)))
        asked = [{"role": "system", "content": system}, {"role": "user", "content": description}]
        answer = " ".join("".join(bounded(self.complete(asked), LONGEST + 1)).split())
        return answer if 0 < len(answer) <= LONGEST else description


def bounded(answer: str | Iterable[str], most: int) -> Iterator[str]:
    """The pieces of an answer, as many characters as are read of it: then no more are asked for.

    Raises:
        ValueError: an answer that is no text.
    """
    for piece in [answer] if isinstance(answer, str) else answer:
        if not isinstance(piece, str):
            raise ValueError(f"a chat endpoint answers in text, got {piece!r}"[:200])
        if piece := piece[:most]:
            most -= len(piece)
            yield piece
        if most <= 0:
            close = getattr(answer, "close", None)
            if close is not None:
                close()
            return


def drawn_by(model: Denoiser, strength: float = STRENGTH, **options: Any) -> tuple[Generate, Edit]:
    """Both backends of a model that reads captions.

    An edit starts from the last picture, noised to the level that the share `strength` of the grid leaves, under its
    seed, and is drawn by the new description: less strength keeps more and changes less.

    Args:
        options: of `fs.sample`: steps, solver, ...

    Raises:
        ValueError: a model that reads no captions, a strength that is not above 0 and below 1.
    """
    from fewstep.sampling.sample import sample

    if "text" not in model.conditions:
        raise ValueError("this model reads no captions: it cannot draw what is said")
    if not 0 < strength < 1:
        raise ValueError(f"strength must be above 0 and below 1, got {strength:g}")
    low, high = model.value_range or (-1.0, 1.0)

    def generate(description: str, seed: int) -> Tensor:
        return sample(model, 1, seed=seed, text=description, **options)[0].clamp(low, high)

    def edit(last: Picture, description: str) -> Tensor:
        given: Mapping[str, Any] = options | {"init": last.image[None], "strength": strength}
        return sample(model, 1, seed=last.seed, text=description, **given)[0].clamp(low, high)

    return generate, edit


def endpoint(url: str, name: str, key: str | None = None, timeout: float = 60.0) -> Complete:
    """A chat endpoint that speaks OpenAI's interface, such as `http://localhost:8000/v1`; answers come in pieces.

    key: by default that of the environment, OPENAI_API_KEY; an endpoint that wants none gets a word in its place.
    timeout: seconds without a word from it. Redirects are not followed.

    Raises:
        ImportError: without openai. ValueError: a url that is not http or https; when called, whatever goes wrong.
    """
    import os
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"an endpoint is an address such as http://localhost:8000/v1, got {url!r}")
    if not name:
        raise ValueError("an endpoint needs the name of a model")
    try:
        import openai
    except ImportError:
        raise ImportError("a chat endpoint needs openai: pip install 'fewstep[chat]'") from None
    key = key or os.environ.get("OPENAI_API_KEY") or "none"
    http = openai.DefaultHttpxClient(follow_redirects=False, timeout=timeout)
    client = openai.OpenAI(base_url=url, api_key=key, http_client=http, max_retries=2)

    def complete(messages: Sequence[Message]) -> Iterator[str]:
        try:
            asked: Any = list(messages)
            with client.chat.completions.create(model=name, messages=asked, stream=True) as answer:
                for chunk in answer:
                    if chunk.choices and (piece := chunk.choices[0].delta.content):
                        yield piece
        except openai.OpenAIError as error:
            raise ValueError(f"the endpoint {url} did not answer: {error}") from None

    return complete
