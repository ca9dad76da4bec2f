"""Wherever a template id is asked for, an alias will do (contract.md)."""

from __future__ import annotations

import re

from domain.kernel.errors import not_found
from domain.kernel.ids import NAME_PATTERN, TEMPLATE_PATTERN
from domain.templates.alias import Alias
from domain.templates.template import GONE, Template
from handlers.control import Control

_TEMPLATE = re.compile(TEMPLATE_PATTERN)
_NAME = re.compile(NAME_PATTERN)


async def acted_on(control: Control, project: str, reference: str, command_id: str) -> Template | None:
    """The template that this command has changed already, however it is called by now: a repeated command means that one."""
    candidates = [reference]
    if not _TEMPLATE.match(reference):
        commits = await control.store.read(project, Alias.TOPIC, reference) if _NAME.match(reference) else []
        events = [event["data"] for commit in commits for event in commit.events]
        candidates = list(dict.fromkeys(data["template_id"] for data in reversed(events) if data.get("template_id")))
    for identifier in candidates:
        loaded = await control.store.load(Template, project, identifier)
        if command_id in loaded.commands:
            return loaded.aggregate
    return None


async def resolve_template(control: Control, project: str, reference: str) -> Template:
    """The template behind an id or alias. Raises ``template.not-found``, also for deleted ones."""
    identifier = reference
    if not _TEMPLATE.match(reference):
        alias = await control.find(Alias, project, reference) if _NAME.match(reference) else None
        if alias is None or alias.template_id is None:
            raise not_found("template", reference)
        identifier = alias.template_id
    template = await control.find(Template, project, identifier)
    if template is None or template.state in GONE:
        raise not_found("template", reference)
    return template
