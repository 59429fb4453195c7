"""What the sections of a workload file have in common: nothing unknown in them, nothing changed later."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Amount = Annotated[Decimal, Field(ge=0, max_digits=24, decimal_places=12)]


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values can't be changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)
