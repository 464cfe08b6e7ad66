//! Files as memory.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use memmap2::{Advice, Mmap, MmapMut};
use rayon::prelude::*;

use crate::quant::Bytes;

/// Bytes of a line of a cache, which vectors that begin with one do not straddle.
const LINE: usize = 64;

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

/// Moves bytes side by side into memory of the process's own, in large pages where the system has them.
///
/// A mapped file lies in pages of 4 KiB, scattered over the memory. Whoever reads all of it again and again
/// waits for the place of each: from large pages a decoder reads a tenth faster.
///
/// # Errors
/// What the system says where it has no room; nothing has moved then.
pub fn gather(mut parts: Vec<&mut Bytes>) -> io::Result<()> {
    let lens = parts.iter().map(|part| part.len().next_multiple_of(LINE));
    let len = lens.sum();
    if len == 0 {
        return Ok(());
    }
    let mut all = MmapMut::map_anon(len)?;
    // It may be ignored.
    #[cfg(target_os = "linux")]
    let _ = all.advise(Advice::HugePage);
    let mut rest = &mut all[..];
    let mut copies = Vec::with_capacity(parts.len());
    for part in &parts {
        let (to, after) = rest.split_at_mut(part.len().next_multiple_of(LINE));
        copies.push((&***part, to));
        rest = after;
    }
    copies
        .into_par_iter()
        .for_each(|(from, to)| to[..from.len()].copy_from_slice(from));
    let (all, mut start) = (Bytes::new(Arc::new(all)), 0);
    for part in &mut parts {
        let len = part.len();
        **part = all.slice(start..start + len).expect("as many bytes");
        start += len.next_multiple_of(LINE);
    }
    Ok(())
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

    #[test]
    fn gathered_bytes_are_the_same_and_aligned() {
        let mut parts: Vec<Bytes> = [3, 0, 64, 200]
            .map(|len| Bytes::from((0..len).collect::<Vec<u8>>()))
            .into();
        gather(parts.iter_mut().collect()).unwrap();
        for (part, len) in parts.iter().zip([3, 0, 64, 200]) {
            assert!(part.iter().copied().eq(0..len));
            assert_eq!(part.as_ptr().addr() % LINE, 0);
        }
        gather(vec![]).unwrap();
    }
}
