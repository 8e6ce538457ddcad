from .entry import FileEntry as FileEntry
from .file_set import FileIssue as FileIssue
from .file_set import FileSet as FileSet
from .ledger import Audit as Audit
from .ledger import Ledger as Ledger
from .ledger import audit as audit
from .padding import any_replica_has_value as any_replica_has_value
from .padding import endless_batches as endless_batches
