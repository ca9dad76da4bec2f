"""Wherever a template id is asked for, an alias will do (contract.md)."""

from __future__ import annotations

import re

from domain.kernel.errors import not_found
from domain.kernel.ids import NAME_PATTERN, TEMPLATE_PATTERN
from domain.templates.alias import Alias
from domain.templates.template import Template, TemplateState
from handlers.control import Control

_TEMPLATE = re.compile(TEMPLATE_PATTERN)
_NAME = re.compile(NAME_PATTERN)
GONE = frozenset({TemplateState.DELETED, TemplateState.DELETING})


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
