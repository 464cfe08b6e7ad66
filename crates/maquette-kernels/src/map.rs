//! Files as memory.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use memmap2::{Advice, Mmap};

use crate::quant::Bytes;

/// The contents of a file as memory that the system fills when it is looked at and shares between
/// processes: nothing is copied, and parts of it stay valid as long as somebody holds them.
///
/// A file must not be cut short while it is mapped: the system ends a process that looks at what is
/// gone. Replacing a file by renaming another over it, as everything here writes files, is safe.
///
/// # Errors
/// What the system says.
pub fn map(path: &Path) -> io::Result<Bytes> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file"));
    }
    if file.metadata()?.len() == 0 {
        return Ok(Vec::new().into());
    }
    // SAFETY: the map is only read, and holders only ever see bytes, for which every value is valid.
    // That nobody shortens the file meanwhile is the contract above.
    let map = unsafe { Mmap::map(&file)? };
    // Weights are read from front to back, again and again. Advice may be ignored.
    #[cfg(unix)]
    let _ = map.advise(Advice::WillNeed);
    Ok(Bytes::new(Arc::new(map)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn maps_what_the_file_holds() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        assert!(map(file.path()).unwrap().is_empty());
        file.write_all(b"abc").unwrap();
        let bytes = map(file.path()).unwrap();
        let part = bytes.slice(1..3).unwrap();
        drop(bytes);
        assert_eq!(*part, *b"bc");
        assert!(map(Path::new(".")).is_err());
    }
}
