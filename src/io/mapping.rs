//! A file mapped into memory, which may be truncated or unreadable under us.
//!
//! A page that cannot be had (the file was truncated, its disk fails, there is no space for a hole that is written to)
//! is told by a SIGBUS to whoever touches it, and that ends a process which has not prepared for it. Here it loses the
//! mapping and no more: all of it becomes memory of zeroes that belongs to no file, and it is *lost*: everything that
//! was to be durable by it fails from then on. The module `bus` has the handler.
//!
//! # What is durable
//! The kernel writes pages when it likes. What was written before a [`Mapping::sync`] began, over the same range, is
//! durable when that has returned without error. An error is told once, to one caller, and the kernel takes the pages
//! for clean all the same: so syncs are made one after the other, and one that fails loses the mapping for all of them.
//!
//! # Races
//! Words are read and written atomically, each by itself; of two threads that write the same words at once, each word
//! is of one of them. Whoever keeps values of several words here has to be able to tell a mixture.
//!
//! Not for memory that the I/O path touches: a fault waits for the disk. Never locked (see [`Mapping::unlock`]):
//! locked, it would stay in memory for good once it was touched.

mod bus;
#[cfg(test)]
mod tests;

use bus::Registration;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::ptr::{self, NonNull};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a word.
const WORD: u64 = 8;

/// A file in memory, shared with the file.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    /// Bytes of the file that are mapped: a multiple of the word, not necessarily of the page.
    len: u64,
    file: File,
    /// Made known to the handler of SIGBUS.
    registration: Registration,
    /// Held while syncing.
    syncing: Mutex<()>,
}

// SAFETY: the mapping belongs to the value, not to a thread; all access to it is by atomic words.
unsafe impl Send for Mapping {}
// SAFETY: as above; what changes the mapping as a whole is done by the kernel, atomically for each page.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Map the first `len` bytes of `file`, which is open for reading and writing and has them.
    ///
    /// # Errors
    /// The file is shorter, the address space is exhausted, or there are too many mappings already.
    ///
    /// # Panics
    /// If `len` is 0 or no multiple of 8.
    pub fn new(file: File, len: u64) -> io::Result<Mapping> {
        assert!(len > 0 && len.is_multiple_of(WORD), "{len} bytes are no words");
        let size = usize::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
        if file.metadata()?.len() < len {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file is shorter than what is to be mapped",
            ));
        }
        // SAFETY: a new mapping at an address of the kernel's choice; touches nothing that exists.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let unmap = || {
            // SAFETY: the mapping made above, which nobody has seen yet.
            unsafe { libc::munmap(base, size) };
        };
        let registration = bus::install().and_then(|()| Registration::new(base.expose_provenance(), size));
        let registration = registration.inspect_err(|_| unmap())?;
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        Ok(Mapping {
            base,
            len,
            file,
            registration,
            syncing: Mutex::new(()),
        })
    }

    /// How many bytes are mapped.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is mapped; never so.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the mapping is no longer the file, or may have failed to reach it. It stays so.
    pub fn is_lost(&self) -> bool {
        self.registration.is_lost()
    }

    /// Read the words from byte `at` on, in the byte order of the file. Zeroes if the mapping is lost.
    ///
    /// # Panics
    /// If they are outside, or `at` is no multiple of 8.
    pub fn read(&self, at: u64, words: &mut [u64]) {
        self.check(at, words.len());
        if self.is_lost() {
            words.fill(0);
            return;
        }
        for (index, word) in words.iter_mut().enumerate() {
            // Relaxed: words are not ordered among each other; whoever reads them can tell a mixture.
            *word = self.word(at + index as u64 * WORD).load(Ordering::Relaxed);
        }
    }

    /// Write the words from byte `at` on, in the byte order of the file. Without effect if the mapping is lost: the
    /// next sync says so.
    ///
    /// # Panics
    /// If they are outside, or `at` is no multiple of 8.
    pub fn write(&self, at: u64, words: &[u64]) {
        self.check(at, words.len());
        if self.is_lost() {
            return;
        }
        for (index, word) in words.iter().enumerate() {
            // Always written, also where it changes nothing: an earlier sync may have failed in another process, and
            // left the page clean in memory and old on disk. Relaxed: as in `read`; a sync by another thread is ordered
            // after this by whatever told that thread of it.
            self.word(at + index as u64 * WORD).store(*word, Ordering::Relaxed);
        }
    }

    /// Make durable what was written to the `len` bytes from `at` on (and what else is in their pages).
    ///
    /// # Errors
    /// It may not be durable: the mapping is lost now, if it was not before.
    ///
    /// # Panics
    /// If the range is outside.
    pub fn sync(&self, at: u64, len: u64) -> io::Result<()> {
        self.check_range(at, len);
        let _alone = self.syncing.lock().expect("nobody panics while syncing");
        let first = at / page_size() * page_size();
        // SAFETY: whole pages of this mapping, from one that is in bounds; changes no content.
        let synced = unsafe { libc::msync(self.at(first).cast(), (at + len - first) as usize, libc::MS_SYNC) };
        let result = match synced {
            0 => self.check_file(),
            _ => Err(io::Error::last_os_error()),
        };
        if result.is_err() {
            self.registration.lose();
        }
        // Only now: what was lost while this ran, or before, was not synced by it.
        if self.is_lost() {
            return Err(result.err().unwrap_or_else(|| io::Error::from_raw_os_error(libc::EIO)));
        }
        Ok(())
    }

    /// Undo what `mlockall` did to this mapping. To be called after it.
    ///
    /// # Errors
    /// The system refuses; then the pages stay in memory once they have been touched.
    pub fn unlock(&self) -> io::Result<()> {
        // SAFETY: this mapping; changes no content.
        match unsafe { libc::munlock(self.base.as_ptr().cast(), self.len as usize) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Take the pages of the range out of this process's memory until they are touched again; nothing is lost by it.
    /// The pages that the range shares with its neighbours may stay.
    ///
    /// # Panics
    /// If the range is outside.
    pub fn let_go(&self, at: u64, len: u64) {
        self.check_range(at, len);
        let page = page_size();
        let first = at.next_multiple_of(page);
        let end = if at + len == self.len {
            self.len
        } else {
            (at + len) / page * page
        };
        if first < end {
            // SAFETY: whole pages of a shared mapping: their content is the file's, and changed pages are kept for it.
            unsafe { libc::madvise(self.at(first).cast(), (end - first) as usize, libc::MADV_DONTNEED) };
        }
    }

    /// A file that is shorter than the mapping, or has no name any more, makes nothing durable, and a sync does not say
    /// so.
    fn check_file(&self) -> io::Result<()> {
        let found = self.file.metadata()?;
        if found.len() < self.len || found.nlink() == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the mapped file was truncated or removed",
            ));
        }
        Ok(())
    }

    fn check(&self, at: u64, words: usize) {
        assert!(at.is_multiple_of(WORD), "byte {at} is within a word");
        self.check_range(at, words as u64 * WORD);
    }

    fn check_range(&self, at: u64, len: u64) {
        assert!(
            at <= self.len && len <= self.len - at,
            "{len} bytes at {at} of a mapping of {}",
            self.len
        );
    }

    fn at(&self, offset: u64) -> *mut u8 {
        debug_assert!(offset < self.len);
        // SAFETY: callers have checked that the byte is in this mapping.
        unsafe { self.base.as_ptr().add(offset as usize) }
    }

    fn word(&self, offset: u64) -> &AtomicU64 {
        // SAFETY: in bounds (checked), aligned (the base is aligned to a page, the offset was checked), valid as long
        // as `self` lives, and never accessed in any other way. The kernel, or another process, may change it too, as a
        // thread would.
        unsafe { AtomicU64::from_ptr(self.at(offset).cast()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Before the addresses become somebody else's.
        self.registration.end();
        // SAFETY: the mapping of this value; nobody has a reference into it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len as usize) };
    }
}

/// Bytes of a page.
fn page_size() -> u64 {
    // SAFETY: asks for a number.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).expect("a page has a size")
}
