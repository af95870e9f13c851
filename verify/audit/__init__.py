"""Where EM lives in a torch model, by measurement."""

from verify.audit.command import Audit, audit, audit_factory
from verify.audit.factory import AuditError
from verify.audit.listing import audit_table
from verify.audit.picture import audit_picture

__all__ = ["Audit", "AuditError", "audit", "audit_factory", "audit_picture", "audit_table"]
