"""The workload: what to read, where to send it, under which rules, at what price at most.

One TOML file, checked as a whole by pydantic; unknown keys are errors. `schemas.load` reads it and
turns what pydantic finds into errors that name the file, the key path, the value and what is allowed.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.ids import canonical_json, sha256_hex

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
EnvironmentVariable = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
CloudProject = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.:-]{0,99}$")]
CloudLocation = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,49}$")]
Amount = Annotated[Decimal, Field(ge=0, max_digits=24, decimal_places=12)]
MEBIBYTE = 1 << 20


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values can't be changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Input(Section):
    """Which documents to read."""

    uri: str = Field(min_length=1, description="a folder, a file or a glob; relative to the workload file")
    id: str = Field(min_length=1, description="column of the document id")
    text: str = Field(min_length=1, description="column of the text (string)")
    columns: tuple[str, ...] = Field((), description="further columns that expressions and prompts use")
    filter: str | None = Field(None, description="SQL expression; rows for which it is not true are skipped")
    unique_ids: Literal["run", "batch"] = Field(
        "run", description="where ids must be unique: in the whole input, or only inside a batch"
    )
    max_text_chars: int = Field(1_000_000, ge=1, description="a longer text is a failure")
    unreadable_files: Literal["fail", "skip"] = Field(
        "fail", description="a file that is no readable Parquet stops the run, or is skipped and listed"
    )

    @property
    def needed_columns(self) -> tuple[str, ...]:
        """Every column that is read, once each, the id first and the text second."""
        return tuple(dict.fromkeys((self.id, self.text, *self.columns)))


class Prompt(Section):
    """How a hosted model is asked: a sandboxed Jinja template over the row's columns."""

    template: str = Field(
        min_length=1, description="Jinja template; columns are its variables, and a null is no text"
    )
    system: str = Field("", description="system text, the same for every document")
    json_schema: dict[str, Any] | None = Field(
        None, description="JSON Schema of the answer; its properties become the typed `output` column"
    )
    repair: bool = Field(
        True,
        description="whether an answer that does not fit `json_schema` is sent back once, with what is wrong "
        "in it; both answers are paid",
    )


class TokenPrice(Section):
    """A price of one's own, for models that the price book doesn't know. Per million tokens."""

    input_per_million: Amount = Field(description="per million input tokens")
    output_per_million: Amount = Field(description="per million output tokens")
    cache_read_per_million: Amount | None = Field(
        None, description="per million input tokens read from the prompt cache; default: as other input"
    )
    cache_write_per_million: Amount | None = Field(
        None, description="per million input tokens written to the prompt cache; default: as other input"
    )
    currency: Literal["USD"] = Field("USD", description="ISO 4217")


class HostedBackend(Section):
    """A hosted model behind an HTTP API."""

    provider: Literal["anthropic", "openai", "gemini"] = Field(
        description="the wire format; `openai` is also every server compatible with its chat completions "
        "or its embeddings"
    )
    platform: Literal["direct", "vertex"] = Field(
        "direct",
        description="`vertex`: `gemini` and `anthropic` models on Google Cloud, with application default "
        "credentials instead of a key",
    )
    operation: Literal["chat", "embeddings"] = Field(
        "chat", description="`embeddings`: the route's results are vectors, and it takes no prompt"
    )
    model: str = Field(min_length=1, description="model id, as the provider names it")
    project: CloudProject | None = Field(None, description="of Vertex: the Google Cloud project")
    location: CloudLocation | None = Field(None, description="of Vertex: a region, or `global`")
    base_url: str | None = Field(
        None, description="default: the provider's own address; the path ends at the API's version"
    )
    api_key_env: EnvironmentVariable | None = Field(
        None,
        description="environment variable of the key; default ANTHROPIC_API_KEY, OPENAI_API_KEY or "
        "GEMINI_API_KEY",
    )
    requires_key: bool = Field(True, description="false for servers that take no key")
    max_output_tokens: int = Field(
        1024, ge=1, le=1_000_000, description="of an answer, thinking included; part of the worst case"
    )
    dimensions: int | None = Field(
        None, ge=1, le=16_384, description="of embeddings, required there: length of the vectors"
    )
    send_dimensions: bool = Field(
        True, description="false for embedding models that take no such parameter; the length is checked"
    )
    prompt_caching: Literal["auto", "off"] = Field(
        "auto",
        description="of `anthropic` (other providers cache by themselves): marks the text that all documents "
        "share when it is long enough for the model to cache",
    )
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="further generation parameters, sent as they are (temperature, ...)"
    )
    price: TokenPrice | None = Field(None, description="instead of the price book's")
    max_in_flight: int = Field(
        256, ge=1, le=4096, description="calls to it at a time, of all worker processes"
    )
    requests_per_minute: int | None = Field(
        None, ge=1, description="what may be sent a minute, of all worker processes; none: what it allows"
    )
    tokens_per_minute: int | None = Field(
        None, ge=1, description="the same of input and output tokens together"
    )
    mode: Literal["online", "batch"] = Field(
        "online",
        description="`batch`: documents go out in the provider's batches (OpenAI files and batches, "
        "Anthropic Message Batches, Gemini batch jobs, Gemini's batch prediction on Vertex) at half the "
        "price, and a later run collects the answers",
    )

    batch_bucket: str | None = Field(
        None,
        pattern=r"^gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/[A-Za-z0-9._=-]+)*/?$",
        description='of Vertex with mode = "batch": `gs://BUCKET/FOLDER` for requests and predictions, which '
        "stay there until its lifecycle rule deletes them",
    )

    @property
    def has_batches(self) -> bool:
        """Whether a batch API of the provider's can serve this backend, in whatever mode it is now."""
        if self.platform == "vertex":
            return self.provider == "gemini" and self.batch_bucket is not None
        return True

    @model_validator(mode="after")
    def _batches_are_served(self) -> HostedBackend:
        if self.batch_bucket is not None and (self.platform, self.provider) != ("vertex", "gemini"):
            raise ValueError('`batch_bucket` is for gemini with platform = "vertex"')
        if self.mode == "batch" and not self.has_batches:
            raise ValueError(
                'mode = "batch" with platform = "vertex" is for gemini, and needs `batch_bucket`'
            )
        return self

    @model_validator(mode="after")
    def _platform_has_what_it_needs(self) -> HostedBackend:
        given = {"project": self.project is not None, "location": self.location is not None}
        if self.platform == "direct":
            if any(given.values()):
                raise ValueError('`project` and `location` are for platform = "vertex"')
            return self
        if self.provider == "openai":
            raise ValueError('platform = "vertex" is for the providers gemini and anthropic')
        if not all(given.values()):
            raise ValueError('platform = "vertex" needs `project` and `location`')
        if self.api_key_env is not None:
            raise ValueError("Vertex takes application default credentials and no key: remove `api_key_env`")
        return self

    @model_validator(mode="after")
    def _embeddings_have_what_they_need(self) -> HostedBackend:
        if self.operation == "chat":
            if self.dimensions is not None:
                raise ValueError('`dimensions` is for operation = "embeddings"')
            return self
        if self.provider == "anthropic":
            raise ValueError("anthropic has no embeddings: use openai, gemini or jax")
        if self.platform == "vertex":
            raise ValueError('embeddings of Vertex are not supported: use platform = "direct"')
        if self.dimensions is None:
            raise ValueError("embeddings need `dimensions`, the length of the model's vectors")
        return self


Pooling = Literal["mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"]


class EmbedderBackend(Section):
    """An embedding model that runs here, in JAX."""

    provider: Literal["jax"] = Field(description="runs here, on the devices that JAX finds")
    model_path: str = Field(
        min_length=1,
        description="folder (a path, or gs://) with config.json, tokenizer.json, model.safetensors; "
        "`package:NAME` is the folder `model` of an installed Python package",
    )
    pooling: Pooling | None = Field(None, description="default: what the model's files say")
    normalize: bool | None = Field(None, description="default: what the model's files say")
    max_length: int | None = Field(None, ge=2, le=8192, description="tokens; default: the model's own")
    dimensions: int | None = Field(
        None, ge=1, description="first components of a vector to keep (Matryoshka models); default: all"
    )
    prompt_name: str | None = Field(
        None,
        description="of the model's own prompts, the one before every document; default: the one called "
        "`document`, `passage` or `corpus`, else the files' default",
    )
    prefix: str | None = Field(
        None, max_length=2000, description="words before every document, instead of a prompt of the model's"
    )
    query_prefix: str | None = Field(
        None,
        max_length=2000,
        description="words before a search's query; default: the model's prompt `query`, else the files' "
        "default",
    )
    long_documents: Literal["truncate", "chunk"] = Field(
        "truncate",
        description="documents of more than `max_length` tokens: cut off there, or embedded in chunks whose "
        "vectors are averaged by their tokens",
    )
    chunk_overlap: int = Field(0, ge=0, le=4096, description="tokens that a chunk shares with the one before")
    compute_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the matrix products"
    )
    output_dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="of the vectors; bfloat16 is rounded to bfloat16 and stored as float16"
    )
    step_tokens: int | None = Field(
        None,
        ge=64,
        le=1 << 20,
        description="tokens that a device works on at a time, for models whose steps don't fit; default: by "
        "kind of device",
    )
    tensor_parallel: int = Field(
        1,
        ge=1,
        le=64,
        description="devices that share one copy of the model, for models that don't fit on one; the "
        "model's heads must divide by it",
    )
    price_per_device_hour: Amount | None = Field(
        None, description="USD; none: the list price where the price book knows it (TPUs), else unknown"
    )
    device_watts: tuple[float, float] | None = Field(
        None, description="power of a device, least and most; none: the price book's, as for the price"
    )

    @model_validator(mode="after")
    def _one_prompt_and_overlap_of_chunks(self) -> EmbedderBackend:
        if self.prompt_name is not None and self.prefix is not None:
            raise ValueError("give either `prompt_name` or `prefix`")
        if self.chunk_overlap and self.long_documents != "chunk":
            raise ValueError('`chunk_overlap` is for long_documents = "chunk"')
        return self


Backend = Annotated[HostedBackend | EmbedderBackend, Field(discriminator="provider")]


class Split(Section):
    """One arm of a weighted split: which chain of backends, for which share of the documents."""

    weight: int = Field(ge=1, le=1_000_000, description="share of the documents, relative to the other arms")
    backends: tuple[str, ...] = Field(min_length=1, description="ordered chain of backends")


class Route(Section):
    """A named rule, and the ordered chain of backends that its documents go to."""

    name: Name = Field(description="stands in the output's paths and in `lineage.route`")
    when: str = Field("TRUE", min_length=1, description="SQL expression over the input columns")
    backends: tuple[str, ...] = Field((), description="ordered chain: the next is tried when one fails")
    split: tuple[Split, ...] = Field((), description="weighted chains instead of one, by hash of the id")
    prompt: str | None = Field(None, description="name of a prompt; hosted routes need one")
    share: int = Field(
        1, ge=1, le=1000, description="weight among routes that wait for the same provider, model and key"
    )

    @property
    def chains(self) -> tuple[Split, ...]:
        """The route's chains with their weights; a plain chain is a split with one arm."""
        return self.split or (Split(weight=1, backends=self.backends),)

    @model_validator(mode="after")
    def _one_kind_of_chain(self) -> Route:
        if bool(self.backends) == bool(self.split):
            raise ValueError("give either `backends` or `split`")
        return self


class Rejection(Section):
    """A rule that keeps documents from being sent."""

    name: Name = Field(description="stands in the failure's message")
    when: str = Field(min_length=1, description="SQL expression; documents for which it is true are rejected")
    reason: str = Field(min_length=1, description="stands in the failure row")
    routes: tuple[str, ...] = Field((), description="for these routes only; default: for all")


class Policy(Section):
    """What may go where. Checked before anything leaves the process."""

    reject: tuple[Rejection, ...] = Field((), description="see below")
    allowed_providers: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="route → providers; a route that is not named allows all"
    )


class RouteBudget(Section):
    """What one route may cost at most, over all attempts."""

    amount: Amount | None = Field(None, description="a cap on the route's hosted calls")
    tokens: int | None = Field(None, ge=0, description="a cap on their input and output tokens together")


class Budget(Section):
    """What the run may cost at most, over all its attempts."""

    amount: Amount | None = Field(None, description="the cap; none: no cap")
    tokens: int | None = Field(None, ge=0, description="a cap on input and output tokens together")
    routes: dict[Name, RouteBudget] = Field(default_factory=dict, description="caps by route; see below")
    soft_amount: Amount | None = Field(
        None, description="from here on the run warns, in progress, status and manifest; it goes on"
    )
    soft_fraction: float | None = Field(
        None, gt=0, le=1, description="the same as a part of `amount`, 0 to 1; give one of the two"
    )
    cost_centre: Name | None = Field(
        None, description="who pays: runs of the same cost centre share a cap per month (UTC)"
    )
    cost_centre_amount: Amount | None = Field(
        None, description="that cap, in a month, of this workload's runs"
    )
    cost_centre_folder: str | None = Field(
        None, description="folder of the records that they share; relative to the workload file"
    )
    currency: Literal["USD"] = Field("USD", description="ISO 4217")
    on_unknown_price: Literal["refuse", "allow"] = Field(
        "refuse", description="what to do with a hosted model that has no price, when there is a cap"
    )

    @property
    def soft(self) -> Decimal | None:
        """The amount from which on the run warns."""
        if self.soft_fraction is not None and self.amount is not None:
            return self.amount * Decimal(str(self.soft_fraction))
        return self.soft_amount

    @property
    def caps_money(self) -> bool:
        """Whether any cap is in money, so that a call without a known price can't be held by it."""
        by_route = any(route.amount is not None for route in self.routes.values())
        return self.amount is not None or self.cost_centre is not None or by_route

    @model_validator(mode="after")
    def _complete(self) -> Budget:
        centre = (self.cost_centre, self.cost_centre_amount, self.cost_centre_folder)
        if None in centre and centre != (None, None, None):
            raise ValueError("`cost_centre`, `cost_centre_amount` and `cost_centre_folder` go together")
        if self.soft_amount is not None and self.soft_fraction is not None:
            raise ValueError("give either `soft_amount` or `soft_fraction`")
        if self.soft_fraction is not None and self.amount is None:
            raise ValueError("`soft_fraction` is a part of `amount`: give that as well")
        return self


class Review(Section):
    """When a run waits until a person has approved it. Rehearsals never wait: nothing is paid."""

    quote_above: Amount | None = Field(
        None,
        description="a run whose quote is likely to pass this (USD), or has no price, waits before it sends",
    )
    soft_budget: bool = Field(
        False, description="at the soft budget the run stops and waits, instead of only warning"
    )
    routes: tuple[str, ...] = Field(
        (), description="a run that would send documents on one of these hosted routes waits before it sends"
    )
    wait_h: float = Field(
        168.0, gt=0, le=8760, description="how long a run waits for an answer; then it fails"
    )


class Output(Section):
    """Where results go, and which input columns go along."""

    uri: str = Field(min_length=1, description="a folder; relative to the workload file")
    columns: tuple[str, ...] = Field((), description="input columns that are copied into the results")
    compression: Literal["zstd", "snappy", "none"] = Field("zstd", description="of the Parquet parts")


class Limits(Section):
    """Sizes, times and concurrency."""

    batch_rows: int = Field(4096, ge=1, le=1_000_000, description="rows of a batch at most")
    batch_bytes: int = Field(32 * MEBIBYTE, ge=1024, description="uncompressed bytes of the columns read")
    reader_bytes: int = Field(
        1024 * MEBIBYTE,
        ge=256 * MEBIBYTE,
        description="memory of a process that decodes input files; a batch is a fourth of it at most",
    )
    max_in_flight: int = Field(256, ge=1, le=16384, description="calls at a time of the whole run")
    max_calls: int = Field(
        6,
        ge=1,
        le=100,
        description="calls for a document and backend at most; on a chain's last backend 429s don't count",
    )
    request_timeout_s: float = Field(60.0, gt=0, le=3600, description="for one call, from sending to the end")
    document_deadline_s: float = Field(
        600.0, gt=0, le=86400, description="for all calls of a document on a route"
    )
    batch_deadline_h: float = Field(
        24.0,
        gt=0,
        le=168,
        description='of backends with mode = "batch": what no provider batch has answered by then goes out '
        "one by one, at full price",
    )
    share_identical: bool = Field(
        True,
        description="identical requests to a backend are paid once and all get the same answer; false asks "
        "(and pays) for each, for independent samples",
    )
    groups: int | None = Field(None, ge=1, le=500, description="task runs; default: by number of batches")
    parallel_groups: int = Field(1, ge=1, le=64, description="Beam processes at a time")


class Faults(Section):
    """How often the rehearsal's stand-in misbehaves: shares of the calls, 0 to 1, added up at most 1."""

    rate_limited: float = Field(0.0, ge=0, le=1, description="429 with Retry-After")
    server_error: float = Field(0.0, ge=0, le=1, description="500")
    overloaded: float = Field(0.0, ge=0, le=1, description="529")
    connection_reset: float = Field(0.0, ge=0, le=1, description="the connection is reset")
    hang: float = Field(0.0, ge=0, le=1, description="no answer comes")
    truncated_body: float = Field(0.0, ge=0, le=1, description="the body breaks off")
    max_tokens: float = Field(0.0, ge=0, le=1, description="the answer is cut off at the limit")
    invalid_json: float = Field(0.0, ge=0, le=1, description="the answer is no JSON")
    refusal: float = Field(0.0, ge=0, le=1, description="the model refuses")

    @model_validator(mode="after")
    def _shares(self) -> Faults:
        if sum(self.model_dump().values()) > 1.0:
            raise ValueError("the shares add up to more than 1")
        return self


class Rehearsal(Section):
    """How the loopback stand-in behaves; deterministic by seed and request."""

    seed: int = Field(0, description="same seed and request, same answer")
    latency_ms: tuple[float, float] = Field((20.0, 80.0), description="least and most")
    faults: Faults = Field(Faults(), description="see below")


class Workload(Section):
    """One workload file."""

    name: Name = Field(description="of the workload, in reports")
    match: Literal["first", "all"] = Field(
        "first", description="a document goes to the first route that matches, or to all"
    )
    input: Input
    routes: tuple[Route, ...] = Field(min_length=1)
    backends: dict[Name, Backend] = Field(min_length=1)
    prompts: dict[Name, Prompt] = Field(default_factory=dict)
    policy: Policy = Policy()
    budget: Budget = Budget()
    review: Review = Review()
    output: Output
    limits: Limits = Limits()
    rehearsal: Rehearsal = Rehearsal()

    def digest(self) -> str:
        """Digest of all that decides the answers and how the input is cut; 64 hexadecimal digits.

        Budget, review, prices, times, concurrency and the addresses of input and output are left out: a
        raised cap or a moved folder is the same workload. `batch_rows` and `batch_bytes` are in it,
        because with other batches nothing that is committed would be found again. A key that is newer
        than the first release counts only where it is not at its default.
        """
        content = self.model_dump(mode="json", exclude={"budget", "review", "limits", "output", "rehearsal"})
        content["input"].pop("uri")
        content["input"].pop("unreadable_files")
        content["output_columns"] = list(self.output.columns)
        content["batches"] = [self.limits.batch_rows, self.limits.batch_bytes]
        for route in content["routes"]:
            route.pop("share")
        for backend in content["backends"].values():
            for key in _NO_PART_OF_THE_ANSWER:
                backend.pop(key, None)
            kind = EmbedderBackend if backend["provider"] == "jax" else HostedBackend
            _drop_defaults(backend, kind, _NEWER_BACKEND_KEYS)
        for prompt in content["prompts"].values():
            _drop_defaults(prompt, Prompt, ("repair",))
        return sha256_hex(canonical_json(content))

    def shares(self) -> dict[str, int]:
        """The weights of the routes where they wait for the same lane."""
        return {route.name: route.share for route in self.routes}

    def hosted_backends(self) -> dict[str, HostedBackend]:
        """The hosted backends by name."""
        return {n: b for n, b in self.backends.items() if isinstance(b, HostedBackend)}

    def embedder_backends(self) -> dict[str, EmbedderBackend]:
        """The JAX embedders by name."""
        return {n: b for n, b in self.backends.items() if isinstance(b, EmbedderBackend)}

    def route(self, name: str) -> Route:
        """The route of that name; KeyError if there is none."""
        for route in self.routes:
            if route.name == name:
                return route
        raise KeyError(name)

    def is_embed_route(self, route: Route) -> bool:
        """Whether the route's results are vectors, of an embedder here or of a hosted model."""
        return self.is_local_route(route) or self.hosted_embeddings(route) is not None

    def is_local_route(self, route: Route) -> bool:
        """Whether the route's documents go to an embedder here (a chain is all hosted or all embedder)."""
        return isinstance(self.backends[route.chains[0].backends[0]], EmbedderBackend)

    def hosted_embeddings(self, route: Route) -> HostedBackend | None:
        """The hosted backend that makes the route's vectors; None when they are no hosted model's."""
        backend = self.backends[route.chains[0].backends[0]]
        return backend if isinstance(backend, HostedBackend) and backend.operation == "embeddings" else None


_NO_PART_OF_THE_ANSWER = (
    "price",
    "price_per_device_hour",
    "device_watts",
    "tensor_parallel",
    "step_tokens",
    "max_in_flight",
    "requests_per_minute",
    "tokens_per_minute",
    "mode",
    "batch_bucket",
    "api_key_env",
    "project",
    "prompt_caching",
    "query_prefix",
)
_NEWER_BACKEND_KEYS = (
    *("platform", "operation", "location", "dimensions", "send_dimensions"),
    *("prompt_name", "prefix", "long_documents", "chunk_overlap"),
)


def _drop_defaults(section: dict[str, Any], model: type[Section], keys: tuple[str, ...]) -> None:
    for key in keys:
        if key in section and section[key] == model.model_fields[key].default:
            del section[key]
