"""The settings of one process: the only reader of the environment."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AliasChoices,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from ltx2.errors import InvalidRequest, NotReady

ClipMetadata = Literal["full", "origin", "none"]
"""What is written into a clip: how to make it again and where it comes from, only that, or nothing."""


class Settings(BaseSettings):
    """Every ``LTX2_…`` environment variable, checked once and frozen.

    The name of a variable is ``LTX2_`` and the field's name in capitals, but for those that RunPod has named.
    """

    model_config = SettingsConfigDict(
        env_prefix="LTX2_", frozen=True, extra="ignore", allow_inf_nan=False, populate_by_name=True
    )

    model: str = Field(
        "tiny",
        min_length=1,
        description="tiny, tiny-dev, tiny-2.3, tiny-2.5; ltx-2, ltx-2.3, ltx-2.5, each with -distilled or without; "
        "a hub repository as org/name, or org/name/file.safetensors; a folder or a .safetensors file",
    )
    models_dir: Path = Field(Path("/runpod-volume"), description="where a model given by name is looked for")
    upsampler: Path | None = Field(None, description="latent upsampler instead of the one beside the model")
    distilled_lora: Path | None = Field(None, description="LoRA a dev model refines with, instead of one beside it")
    loras_dir: Path | None = Field(None, description="folder of LoRAs that requests may name")
    lora_cache_mb: NonNegativeFloat = Field(4096, description="host memory for LoRAs that were used, in MiB")
    text_encoder: Path | None = Field(None, description="folder or file of the text encoder, where the model has none")
    recipe: Literal["auto", "dev", "distilled"] = Field("auto", description="auto takes it from the model's name")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto takes a GPU if there is one")
    precision: Literal["auto", "bf16", "fp8", "fp8-storage", "fp32"] = Field(
        "auto",
        description="fp8 multiplies float8 where the GPU can, fp8-storage only stores it; "
        "auto is bf16 where it fits, else fp8, and fp32 on a CPU",
    )
    offload: Literal["auto", "none", "text-encoder", "model", "group"] = Field(
        "auto", description="what waits in host memory while it is not used; auto moves as little as fits"
    )
    plan_for: str = Field(
        "1280x704x121",
        pattern=r"^[1-9]\d{1,4}x[1-9]\d{1,4}x[1-9]\d{0,5}$",
        description="width x height x frames of the largest clip that memory is kept free for",
    )
    video_decoder: Literal["auto", "conv", "diffusion"] = Field(
        "auto", description="what decodes LTX-2.5's pictures; auto is diffusion where the model has it"
    )
    prompt_cache_mb: NonNegativeFloat = Field(
        512, description="host memory for encoded prompts, in MiB; one takes about 13, and 0 keeps none"
    )
    data_dir: Path = Field(Path("ltx2-data"), description="everything the program writes goes below this folder")
    engine: Literal["local", "fake", "runpod", "ray"] = Field(
        "local",
        description="where clips are made: here, on a RunPod endpoint, or by a Ray cluster; "
        "fake makes test cards in milliseconds, for those who write clients",
    )
    residency: str = Field(
        "resident",
        pattern=r"^(resident|transient|idle:[1-9]\d{0,6})$",
        description="how long the server keeps the model: for ever, for one clip, or for so many idle seconds",
    )
    host: str = Field("127.0.0.1", description="address the server listens on; 0.0.0.0 lets other machines in")
    port: Annotated[int, Field(ge=0, le=65_535)] = Field(
        8000,
        validation_alias=AliasChoices("LTX2_PORT", "PORT"),
        description="port the server listens on; where it is not set, PORT is asked",
    )
    health_port: Annotated[int, Field(gt=0, le=65_535)] | None = Field(
        None, validation_alias="PORT_HEALTH", description="another port it listens on, for RunPod's load balancer"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="how much is logged")

    runpod_jobs_url: str | None = Field(
        None, validation_alias="RUNPOD_WEBHOOK_GET_JOB", description="set by RunPod where jobs come from its queue"
    )

    runpod_log_level: Literal["DEBUG", "INFO", "WARN", "ERROR"] = Field(
        "INFO", validation_alias="RUNPOD_LOG_LEVEL", description="RunPod's client at DEBUG logs whole inputs"
    )

    runpod_endpoint: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_-]{1,64}$", description="id of the endpoint that makes the clips, for runpod"
    )
    runpod_api_key: SecretStr | None = Field(
        None, min_length=1, validation_alias="RUNPOD_API_KEY", description="of RunPod, for the endpoint"
    )
    runpod_base_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s]+$",
        validation_alias="RUNPOD_ENDPOINT_BASE_URL",
        description="where endpoints are, if not at RunPod: another server of ours, say",
    )
    remote_jobs: Annotated[int, Field(gt=0, le=256)] = Field(
        8, description="generations that are sent to the endpoint at the same time, waiting there included"
    )
    ray_address: str | None = Field(
        None,
        min_length=1,
        description="host:port of the Ray cluster's head, or auto; without, a cluster is started on this machine",
    )
    ray_min_actors: Annotated[int, Field(ge=0, le=256)] = Field(
        1, description="actors, each with a model and a GPU, that are kept"
    )
    ray_max_actors: Annotated[int, Field(gt=0, le=256)] = Field(1, description="actors at most")

    result_max_mb: PositiveFloat = Field(
        9.5, description="size of a RunPod result with the clip inside, in megabytes; /run takes 10, /runsync 20"
    )
    volume_dir: Path = Field(
        Path("/runpod-volume"), description="where larger results go that have no bucket, if it is there"
    )
    bucket_endpoint_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s]+$",
        validation_alias="BUCKET_ENDPOINT_URL",
        description="the bucket that a worker's results go to, by S3's protocol",
    )
    bucket_access_key_id: SecretStr | None = Field(
        None, min_length=1, validation_alias="BUCKET_ACCESS_KEY_ID", description="its key"
    )
    bucket_secret_access_key: SecretStr | None = Field(
        None, min_length=1, validation_alias="BUCKET_SECRET_ACCESS_KEY", description="its secret"
    )
    bucket_name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}$", description="its name, where the URL has none"
    )
    bucket_region: str | None = Field(None, pattern=r"^[A-Za-z0-9-]{1,64}$", description="its region")
    bucket_prefix: str = Field(
        "ltx2/", pattern=r"^([A-Za-z0-9._-]+/)*$", description="what the names of results in it begin with"
    )
    bucket_seconds: Annotated[int, Field(gt=0, le=604_800)] = Field(
        86_400, description="how long a link to a result in it is good; S3 allows seven days"
    )

    shutdown_seconds: PositiveInt = Field(
        30, description="how long the server lets requests finish when it is told to end"
    )
    queue_limit: PositiveInt = Field(100, description="requests waiting at most; one more is refused")
    deadline_seconds: PositiveFloat = Field(3600, description="how long one generation may take")
    sync_seconds: PositiveFloat = Field(1800, description="how long a caller may wait for a clip in one request")

    api_keys: SecretStr | None = Field(
        None, description="comma-separated; with any, every route but health and docs wants one"
    )
    public_url: str | None = Field(
        None, pattern=r"^https?://[^/?#\s]+[^?#\s]*$", description="this server as callers see it, behind a proxy"
    )
    link_seconds: PositiveInt = Field(86_400, description="how long a link to a clip is good where keys are wanted")

    database_url: SecretStr | None = Field(None, description="where jobs are kept, instead of the data folder")
    files_url: str | None = Field(
        None, min_length=1, description="where files are kept, such as s3://bucket/folder, instead of the data folder"
    )
    files_max_gb: PositiveFloat = Field(50, description="all files together; while they are more, nothing is accepted")
    files_hours: NonNegativeFloat = Field(168, description="how long a file is kept; 0 for ever")
    jobs_hours: NonNegativeFloat = Field(168, description="how long an ended job is remembered; 0 for ever")

    url_allow: str | None = Field(
        None,
        pattern=r"^[^,:\s]+:\d+(,[^,:\s]+:\d+)*$",
        description="host:port,… of internal places that URLs may name all the same",
    )
    url_seconds: PositiveFloat = Field(30, description="how long fetching one URL may take")
    webhook_secret: SecretStr | None = Field(
        None, description="whsec_… that webhooks are signed with; made and kept in the data folder when absent"
    )
    webhook_retry_seconds: PositiveFloat = Field(
        5, description="wait before a failed delivery is tried again; four times longer after each failure"
    )
    content_checker: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="package.module:function that is shown a clip's pictures and returns whether it may be given out, "
        "for callers who ask for that",
    )
    price_per_second: NonNegativeFloat = Field(
        0.0, description="price of one second of generation in US dollars, for callers who ask what a clip has cost"
    )
    kiapi_max_side: PositiveInt = Field(768, description="largest width and height in the kiapi dialect")
    kiapi_max_frames: PositiveInt = Field(721, description="most frames in the kiapi dialect")

    max_body_mb: PositiveFloat = Field(64, description="size of a request body, in MiB")
    max_prompt_chars: Annotated[int, Field(gt=0, le=100_000)] = Field(
        10_000, description="length of a prompt, in characters"
    )
    max_pixels: PositiveInt = Field(1920 * 1088, description="width times height of the video")
    max_num_frames: Annotated[int, Field(gt=0, le=100_000)] = Field(1441, description="frames of the video")
    piece_seconds: Annotated[float, Field(gt=0, le=86_400)] = Field(
        20, description="longer clips are made in pieces of so many seconds, each going on where the last one ended"
    )
    max_video_seconds: PositiveFloat = Field(600, description="length of an input video")
    max_steps: Annotated[int, Field(gt=0, le=1000)] = Field(100, description="denoising steps")
    max_image_megapixels: PositiveFloat = Field(50, description="size of an input image, in millions of pixels")
    max_audio_seconds: PositiveFloat = Field(600, description="length of an input sound")

    video_crf: Annotated[int, Field(ge=0, le=51)] = Field(18, description="x264 quality: 0 is lossless, 51 is worst")
    video_preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"] = Field(
        "veryfast", description="x264 speed: slower makes smaller files"
    )
    video_encoder: Literal[
        "auto", "libx264", "h264_nvenc", "h264_qsv", "h264_amf", "h264_videotoolbox", "h264_v4l2m2m"
    ] = Field("auto", description="who encodes H.264; auto is hardware that works here, else libx264")

    clip_metadata: ClipMetadata = Field(
        "full",
        description="what is written into a clip: the request that makes it again and where it comes from; "
        "origin leaves out the request and its prompts",
    )
    c2pa_certificate: Path | None = Field(
        None, description="PEM file of the certificate that clips are signed with, and those above it"
    )
    c2pa_key: Path | None = Field(None, description="PEM file of its private key")
    c2pa_algorithm: Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"] = Field(
        "es256", description="how that key signs"
    )
    c2pa_timestamp_url: str | None = Field(
        None, pattern=r"^https?://[^\s]+$", description="server that vouches for when a clip was signed (RFC 3161)"
    )

    @property
    def model_name(self) -> str:
        """What callers are told of the model: of a path the last part, since folders are none of their business."""
        if self.engine == "fake":
            return self.engine
        path = Path(self.model)
        return path.name if path.is_absolute() or path.parts[:1] in (("~",), ("..",)) else self.model

    @property
    def max_body_bytes(self) -> int:
        """The body limit in bytes."""
        return int(self.max_body_mb * 2**20)

    @field_validator("api_keys")
    @classmethod
    def _keys_are_keys(cls, listed: SecretStr | None) -> SecretStr | None:
        # a secret that came out empty must not open the server to everybody
        keys = ["none wanted"] if listed is None else listed.get_secret_value().split(",")
        if not any(key.strip() for key in keys) or not all(key.isascii() and key.isprintable() for key in keys):
            raise ValueError("should be printable ASCII, and at least one key")
        return listed

    @field_validator(
        "bucket_endpoint_url",
        "bucket_access_key_id",
        "bucket_secret_access_key",
        "bucket_name",
        "bucket_region",
        mode="before",
    )
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        # what RunPod's forms make of an input that nobody filled in
        return None if value == "" else value

    @property
    def keys(self) -> tuple[str, ...]:
        """The API keys; none when everybody may call."""
        listed = self.api_keys.get_secret_value().split(",") if self.api_keys else ()
        return tuple(key.strip() for key in listed if key.strip())

    @property
    def allowed_targets(self) -> frozenset[str]:
        """Internal ``host:port`` that URLs may name."""
        return frozenset(self.url_allow.lower().split(",")) if self.url_allow else frozenset()

    @property
    def ttl_seconds(self) -> float | None:
        """How long a model stays that nobody uses; None for ever."""
        kind, _, idle = self.residency.partition(":")
        return None if kind == "resident" else float(idle or 0)

    def without_secrets(self) -> Self:
        """The same for what makes clips: keys and passwords are no business of the model's."""
        secrets = [name for name in type(self).model_fields if isinstance(getattr(self, name), SecretStr)]
        return self.model_copy(update=dict.fromkeys(secrets))

    @property
    def work_dir(self) -> Path:
        """Where clips are written. They stay as long as they are being answered with."""
        return self.data_dir / "work"

    def make_work_dir(self) -> Path:
        """The folder that clips are written to, made when it is not there.

        Raises:
            NotReady: it cannot be made.
        """
        try:
            self.work_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NotReady(
                f"the folder for clips cannot be made: {error.strerror}",
                hint="set LTX2_DATA_DIR to a folder that this user can write",
            ) from error
        return self.work_dir

    @property
    def outputs_dir(self) -> Path:
        """Where clips are kept that were made at the command line."""
        return self.data_dir / "outputs"


def load_settings() -> Settings:
    """Read the environment.

    Raises:
        InvalidRequest: a variable has a value that cannot be used; the message names the variable.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        name = field if field.isupper() else "LTX2_" + field.upper()
        name += " or PORT" if name == "LTX2_PORT" else ""
        raise InvalidRequest(f"the environment variable {name} is wrong: {first['msg']}", field=name) from None
