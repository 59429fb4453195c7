"""Where documents can be sent: hosted models behind an HTTP API, and embedders that run here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from schemas.sections import Amount, Section

EnvironmentVariable = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
CloudProject = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.:-]{0,99}$")]
CloudLocation = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,49}$")]
Pooling = Literal["mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"]


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
