//! Files as memory.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use memmap2::{Advice, Mmap, MmapMut};

use crate::quant::Bytes;

/// Bytes of a line of a cache, which vectors that begin with one do not straddle.
const LINE: usize = 64;

/// Bytes that are moved before it is asked again whether anybody still wants them.
const PIECE: usize = 1 << 24;

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
    Ok(Bytes::of_map(Arc::new(map)))
}

/// Moves bytes side by side into memory of the process's own, in large pages where the system has them. A
/// thread of its own does so; they are read where they were until all of them have moved.
///
/// A mapped file lies in pages of 4 KiB, scattered over the memory. Whoever reads all of it again and again
/// waits for the place of each: from large pages a decoder reads a tenth faster. But to get as much new memory
/// can take seconds, for which nobody should have to wait.
///
/// # Errors
/// What the system says where it has no room, or no thread; nothing moves then.
pub fn gather(parts: Vec<&mut Bytes>) -> io::Result<Gathering> {
    let lens = parts.iter().map(|part| part.len().next_multiple_of(LINE));
    let len: usize = lens.sum();
    if len == 0 {
        return Ok(Gathering(None));
    }
    let mut room = MmapMut::map_anon(len)?;
    // It may be ignored.
    #[cfg(target_os = "linux")]
    let _ = room.advise(Advice::HugePage);
    let moved = Arc::new(OnceLock::new());
    let before: Vec<Bytes> = parts.iter().map(|part| (**part).clone()).collect();
    let (of_thread, wanted) = (before.clone(), Arc::downgrade(&moved));
    let builder = std::thread::Builder::new().name("gather weights".into());
    let thread = builder.spawn(move || {
        let before = of_thread;
        let mut rest = &mut room[..];
        for from in &before {
            let (mut to, after) = rest.split_at_mut(from.len().next_multiple_of(LINE));
            rest = after;
            for from in from.chunks(PIECE) {
                if wanted.strong_count() == 0 {
                    return;
                }
                let (piece, after) = to.split_at_mut(from.len());
                piece.copy_from_slice(from);
                to = after;
            }
        }
        let Some(moved) = wanted.upgrade() else {
            return;
        };
        let _ = moved.set(room);
        // The file's pages stay with the system, but count no longer as this process's.
        #[cfg(unix)]
        for same in before.chunk_by(|a, b| a.of_the_same_file(b)) {
            let Some(map) = same[0].map() else { continue };
            // SAFETY: a map of a file that nobody writes to: whoever still reads there finds the same.
            let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    })?;
    let mut start = 0;
    for (part, before) in parts.into_iter().zip(before) {
        let range = start..start + before.len();
        start = range.end.next_multiple_of(LINE);
        let moved = moved.clone();
        *part = Bytes::new(Arc::new(Moving {
            before,
            moved,
            range,
        }));
    }
    Ok(Gathering(Some(thread)))
}

/// Bytes that are being moved by [`gather`].
#[derive(Debug, Default)]
pub struct Gathering(Option<JoinHandle<()>>);

impl Gathering {
    /// Waits until all of them have moved.
    pub fn wait(self) {
        if let Some(thread) = self.0 {
            // What it left undone shows in no way but the speed.
            let _ = thread.join();
        }
    }
}

/// Bytes that are read where they were until all that move with them have.
struct Moving {
    before: Bytes,
    moved: Arc<OnceLock<MmapMut>>,
    /// Where they are then.
    range: Range<usize>,
}

impl AsRef<[u8]> for Moving {
    fn as_ref(&self) -> &[u8] {
        match self.moved.get() {
            Some(moved) => &moved[self.range.clone()],
            None => &self.before,
        }
    }
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
        let gathering = gather(parts.iter_mut().collect()).unwrap();
        let same = |part: &Bytes, len| part.iter().copied().eq(0..len);
        assert!(
            parts
                .iter()
                .zip([3, 0, 64, 200])
                .all(|(part, len)| same(part, len))
        );
        gathering.wait();
        for (part, len) in parts.iter().zip([3, 0, 64, 200]) {
            assert!(same(part, len));
            assert_eq!(part.as_ptr().addr() % LINE, 0);
        }
        gather(vec![]).unwrap().wait();
    }

    #[test]
    fn whoever_reads_a_file_while_it_is_gathered_finds_the_same() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let contents: Vec<u8> = (0..3 * PIECE + 5).map(|i| (i >> 8) as u8).collect();
        file.write_all(&contents).unwrap();
        let mut bytes = map(file.path()).unwrap();
        let gathering = gather(vec![&mut bytes]).unwrap();
        let before: &[u8] = &bytes;
        assert!(*bytes == contents);
        gathering.wait();
        assert!(*before == contents && *bytes == contents);
        assert_ne!(before.as_ptr(), bytes.as_ptr());
    }

    #[test]
    fn what_nobody_wants_any_more_is_not_moved_on() {
        let mut bytes = Bytes::from(vec![1; 8 * PIECE]);
        let gathering = gather(vec![&mut bytes]).unwrap();
        drop(bytes);
        gathering.wait();
    }
}
