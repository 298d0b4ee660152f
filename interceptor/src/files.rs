//! Files that are replaced as a whole or not at all.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Puts `bytes` in the place of `file`, on the disk before they have the name, for whom `mode` says.
///
/// # Errors
/// The system's; the file is then as it was.
pub(crate) fn replace(file: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = file.parent().unwrap_or(Path::new("."));
    // Made with mode 0600.
    let mut new = tempfile::NamedTempFile::new_in(directory)?;
    new.write_all(bytes)?;
    new.as_file().set_permissions(Permissions::from_mode(mode))?;
    new.as_file().sync_all()?;
    new.persist(file).map_err(|error| error.error)?;
    fs::File::open(directory)?.sync_all()
}
