"""What can have happened to a template. Names and fields are permanent; ``apply`` only writes down what the event says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from domain.kernel.aggregate import CreatedEvent, Event
from domain.kernel.text import ErrorText
from domain.sandboxes.spec import Recipe
from domain.templates.compat import Policy
from domain.templates.template_states import TemplateRequest, TemplateState

if TYPE_CHECKING:
    from domain.templates.template import Template


class TemplateCreated(CreatedEvent):
    TOPIC = "template.created"
    request: TemplateRequest
    alias: str | None = None
    job_id: str

    def apply(self, template: Template) -> None:
        template.state = TemplateState.PENDING
        template.request = self.request
        template.alias = self.alias
        template.alias_held = False
        template.active_job = self.job_id
        template.last_job = self.job_id
        template.artifact_id = None
        template.image_digest = None
        template.image_config = {}
        template.recipe = None
        template.ready = 0
        template.failed = 0
        template.total = 0
        template.last_error = None
        template.pending_deletes = {}
        template.refused_deletes = {}
        template.compat_policy = Policy.STRICT
        template.created = self.timestamp


class TemplateJobBegun(Event):
    TOPIC = "template.job-begun"
    job_id: str
    mode: str | None = None

    def apply(self, template: Template) -> None:
        template.active_job = self.job_id
        template.last_job = self.job_id


class TemplateArtifactBound(Event):
    TOPIC = "template.artifact-bound"
    artifact_id: str
    image_digest: str
    image_config: dict[str, Any] = {}

    def apply(self, template: Template) -> None:
        template.artifact_id = self.artifact_id
        template.image_digest = self.image_digest
        template.image_config = self.image_config


class TemplateRecipeSet(Event):
    TOPIC = "template.recipe-set"
    recipe: Recipe

    def apply(self, template: Template) -> None:
        template.recipe = self.recipe


class TemplateSettled(Event):
    """Its job is over (``job_id``), or its replicas changed without one (None); the counts are over all its replicas."""

    TOPIC = "template.settled"
    job_id: str | None = None
    status: TemplateState
    ready: int
    failed: int
    total: int
    error: ErrorText | None = None

    def apply(self, template: Template) -> None:
        template.state = self.status
        template.ready, template.failed, template.total = self.ready, self.failed, self.total
        template.last_error = self.error
        if self.job_id is not None:
            template.active_job = None


class TemplateFailed(Event):
    """Its job failed before there was anything to count."""

    TOPIC = "template.failed"
    job_id: str
    status: TemplateState
    error: ErrorText | None = None

    def apply(self, template: Template) -> None:
        template.state = self.status
        template.last_error = self.error
        template.active_job = None


class TemplateAliasClaimed(Event):
    TOPIC = "template.alias-claimed"
    alias: str

    def apply(self, template: Template) -> None:
        template.alias = self.alias
        template.alias_held = True


class TemplateAliasLost(Event):
    TOPIC = "template.alias-lost"
    alias: str

    def apply(self, template: Template) -> None:
        template.alias = None
        template.alias_held = False


class TemplateCompatPolicySet(Event):
    """Which versions of a node count from now on, when its replicas are judged."""

    TOPIC = "template.compat-policy-set"
    policy: Policy

    def apply(self, template: Template) -> None:
        template.compat_policy = self.policy


class TemplateDeleteBegun(Event):
    """From here on nothing starts from it. Sandboxes that come later in the log than this came too late."""

    TOPIC = "template.delete-begun"
    command: str
    force: bool = False

    def apply(self, template: Template) -> None:
        template.pending_deletes[self.command] = self.force


class TemplateDeleteRefused(Event):
    """Sandboxes that were there before the delete began still live: it is as before. ``sandboxes``: the first 20 of them."""

    TOPIC = "template.delete-refused"
    commands: tuple[str, ...]
    sandboxes: tuple[str, ...]

    def apply(self, template: Template) -> None:
        template.pending_deletes = {}
        template.refused_deletes |= dict.fromkeys(self.commands, self.sandboxes)


class TemplateDeleteRequested(Event):
    """It is being removed. ``failed_job``: the job that this delete cut off, by force."""

    TOPIC = "template.delete-requested"
    failed_job: str | None = None

    def apply(self, template: Template) -> None:
        template.state = TemplateState.DELETING
        template.active_job = None
        template.pending_deletes = {}


class TemplateDeleted(Event):
    TOPIC = "template.deleted"

    def apply(self, template: Template) -> None:
        template.state = TemplateState.DELETED
        template.alias = None
        template.alias_held = False


class TemplateDeleteFailed(Event):
    TOPIC = "template.delete-failed"
    error: ErrorText | None = None

    def apply(self, template: Template) -> None:
        template.state = TemplateState.FAILED
        template.last_error = self.error
