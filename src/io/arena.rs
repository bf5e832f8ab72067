//! The one piece of memory that the guest's payloads pass through: reserved once, backed by memory as needed.
//!
//! # Who may touch what
//! The core decides which bytes belong to whom (see [`crate::core::layout`]): a request's buffer to the kernel's
//! driver or to the request, an operation's to the operation, a walk's to the walk. Kernel, shard and workers follow
//! that; the compiler cannot check it. So nothing here depends on it for memory safety:
//! - No reference into the arena is ever made by a safe function. The safe ones copy and compare with accesses that
//!   are defined even when somebody else (another thread, the kernel, a disk) writes the same bytes at that moment;
//!   what they see then is some mixture of old and new. A mistake in the core can make a wrong byte, never undefined
//!   behaviour.
//! - The address range stays mapped until the `Arena` is dropped. Whoever has operations in flight holds an
//!   `Arc<Arena>`, and lets go of it only when the kernel is done, or never (see [`super::uring`]). Giving memory back
//!   with [`Arena::populate`] leaves the range mapped, so an access to it is at worst an access to zeroes.
//!
//! Not handled: which of the buffers are populated (the core's [`Populate`](crate::core::Effect::Populate) effect says
//! so; access to others works and takes a page fault), huge pages, NUMA placement.

use crate::core::{BlockMask, Buf};
use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// The most that [`Arena::reserve`] takes, in bytes: what a [`Buf`] can name.
pub const MAX_BYTES: u64 = 1 << 41;

/// How many bytes of zeroes lie behind [`Arena::zeroes`].
pub const ZEROES: u32 = 1 << 20;

/// One reserved mapping; see the module.
#[derive(Debug)]
pub struct Arena {
    base: NonNull<u8>,
    /// Bytes that buffers lie in. Read-only zeroes follow it, up to `mapped`.
    len: u64,
    mapped: usize,
    /// So many bytes from the start on are not given back.
    held: AtomicU64,
}

// SAFETY: the mapping is owned by this value and belongs to no thread; all access through `&self` is by raw pointers,
// atomics or `asm`, which do not race in the sense of the language (see the module).
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

/// The buffers are there but not locked: under memory pressure they could be written out to swap, which may lie on
/// this very device.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot lock {len} bytes of I/O buffers in memory ({source}); going on without: raise the limit of locked memory \
     (LimitMEMLOCK= of the unit, `ulimit -l`), or keep swap off this device"
)]
pub struct NotLocked {
    /// How many bytes were to be locked.
    pub len: u64,
    /// What the kernel said.
    pub source: io::Error,
}

impl Arena {
    /// Reserve `bytes` of address space (rounded up to whole pages). No memory is taken yet.
    ///
    /// # Errors
    /// Fails when the address space is exhausted or limited.
    ///
    /// # Panics
    /// If `bytes` is above [`MAX_BYTES`].
    pub fn reserve(bytes: u64) -> io::Result<Arena> {
        assert!(
            bytes <= MAX_BYTES,
            "an arena of {bytes} bytes cannot be named by buffers"
        );
        let len = bytes.next_multiple_of(page_size());
        let too_large = |_| io::Error::from_raw_os_error(libc::ENOMEM);
        let mapped = usize::try_from(len + u64::from(ZEROES)).map_err(too_large)?;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice; touches nothing that exists.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        let arena = Arena {
            base,
            len,
            mapped,
            held: AtomicU64::new(0),
        };
        let zeroes = arena.zeroes().cast_mut().cast::<libc::c_void>();
        // SAFETY: the tail of the mapping made above, which nobody has seen yet.
        let protected = unsafe { libc::mprotect(zeroes, ZEROES as usize, libc::PROT_READ) };
        if protected != 0 {
            return Err(io::Error::last_os_error());
        }
        // The rest is best effort. Reading the tail in now maps the kernel's shared zero page everywhere in it: no
        // memory is used, and no page table is allocated in the I/O path. The guest's data has no business in a core
        // dump, and a child process must not get a copy of pages that a disk is writing to.
        // SAFETY: advice on the mapping made above; none of it changes content.
        unsafe {
            libc::madvise(zeroes, ZEROES as usize, libc::MADV_POPULATE_READ);
            libc::madvise(base.as_ptr().cast(), mapped, libc::MADV_DONTDUMP);
            libc::madvise(base.as_ptr().cast(), mapped, libc::MADV_DONTFORK);
        }
        Ok(arena)
    }

    /// How many bytes buffers can lie in.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the arena has no room for any buffer.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Back bytes `start..start+len` with memory and lock it there, keeping their content; or, with `wanted` false,
    /// give the memory back: the bytes read as zeroes afterwards, but for those that are [held](Self::hold).
    /// `start` and `len` are rounded outwards to whole pages when wanted, inwards when not.
    ///
    /// # Errors
    /// [`NotLocked`] if the memory is there but could not be locked, which is for the caller to log. Memory that cannot
    /// be had at all shows itself as the kernel does it: the process is killed.
    ///
    /// # Panics
    /// If the bytes are not all in the arena.
    pub fn populate(&self, start: u64, len: u64, wanted: bool) -> Result<(), NotLocked> {
        self.check(start, len);
        let page = page_size();
        let (first, end) = if wanted {
            (start / page * page, (start + len).next_multiple_of(page))
        } else {
            // Pairs with the store in `hold`.
            let first = start.max(self.held.load(Ordering::Acquire));
            (first.next_multiple_of(page), (start + len) / page * page)
        };
        if first >= end {
            return Ok(());
        }
        let len = end - first;
        let at = self.at(first).cast::<libc::c_void>();
        if !wanted {
            // SAFETY: whole pages of this arena's mapping, which stays mapped. Nobody holds a reference into it, and
            // the owner of the bytes has said that they are of no use any more.
            unsafe {
                libc::munlock(at, len as usize);
                libc::madvise(at, len as usize, libc::MADV_DONTNEED);
            }
            return Ok(());
        }
        // SAFETY: whole pages of this arena's writable mapping; content does not change.
        if unsafe { libc::madvise(at, len as usize, libc::MADV_POPULATE_WRITE) } != 0 {
            for offset in (first..end).step_by(page as usize) {
                // A write that changes nothing makes the page private; a mere read would map the shared zero page.
                // SAFETY: in bounds, and any address is aligned for a byte; atomic, so it races with nothing.
                unsafe { AtomicU8::from_ptr(self.at(offset)) }.fetch_or(0, Ordering::Relaxed);
            }
        }
        // SAFETY: locking changes no content.
        if unsafe { libc::mlock(at, len as usize) } != 0 {
            let source = io::Error::last_os_error();
            return Err(NotLocked { len, source });
        }
        Ok(())
    }

    /// From now on the first `bytes` keep their memory, whatever [`populate`](Self::populate) is told.
    ///
    /// For whoever registers them with a ring: a registration names pages, not addresses. Were a page given back, the
    /// address would get another one when it is used again, and a disk would write what nobody has put there. To be
    /// called before the registration, and not while these bytes are being given back.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn hold(&self, bytes: u64) {
        self.check(0, bytes);
        // Whoever is told afterwards to give memory back sees it.
        self.held.fetch_max(bytes, Ordering::Release);
    }

    /// Where `buf` lies, for the kernel. Valid as long as the arena lives.
    ///
    /// # Panics
    /// If `buf` lies outside.
    #[inline]
    pub fn ptr(&self, buf: Buf) -> *mut u8 {
        self.span(buf, 0)
    }

    /// Where the `len` bytes at `buf` lie, all of which are in the arena.
    ///
    /// # Panics
    /// If they are not.
    #[inline]
    pub fn span(&self, buf: Buf, len: u64) -> *mut u8 {
        self.check(buf.offset(), len);
        self.at(buf.offset())
    }

    /// [`ZEROES`] bytes that are zero as long as the arena lives, aligned to a page. They take no memory.
    #[inline]
    pub fn zeroes(&self) -> *const u8 {
        self.at(self.len)
    }

    /// Copy `len` bytes. The two ranges may be the same, but must not overlap otherwise.
    ///
    /// # Panics
    /// If a byte lies outside.
    #[inline]
    pub fn copy(&self, from: Buf, to: Buf, len: u32) {
        let source = self.span(from, u64::from(len));
        let target = self.span(to, u64::from(len));
        // SAFETY: both are in bounds; `shared_copy` is defined whatever others do to the bytes.
        unsafe { shared_copy(source, target, len as usize) }
    }

    /// Copy bytes out of the arena.
    ///
    /// # Panics
    /// If a byte lies outside.
    #[inline]
    pub fn read(&self, from: Buf, out: &mut [u8]) {
        let source = self.span(from, out.len() as u64);
        // SAFETY: in bounds; `out` is exclusively ours.
        unsafe { shared_copy(source, out.as_mut_ptr(), out.len()) }
    }

    /// Copy bytes into the arena.
    ///
    /// # Panics
    /// If a byte lies outside.
    #[inline]
    pub fn write(&self, to: Buf, bytes: &[u8]) {
        let target = self.span(to, bytes.len() as u64);
        // SAFETY: in bounds; `bytes` does not change while it is borrowed.
        unsafe { shared_copy(bytes.as_ptr(), target, bytes.len()) }
    }

    /// Which blocks of `len` bytes (at most [`BlockMask::SPAN`], a multiple of 512) differ between the two places.
    ///
    /// # Panics
    /// If a byte lies outside, or there are too many.
    pub fn compare(&self, left: Buf, right: Buf, len: u32) -> BlockMask {
        assert!(u64::from(len) <= BlockMask::SPAN, "{len} bytes do not fit a block mask");
        assert!(len.is_multiple_of(512), "{len} bytes are no whole sectors");
        let (left, right) = (self.words(left, len), self.words(right, len));
        let mut differing = BlockMask::default();
        let per_block = (BlockMask::BLOCK / 8) as usize;
        for (i, (left, right)) in left.chunks(per_block).zip(right.chunks(per_block)).enumerate() {
            let differs = left.iter().zip(right).fold(0, |differs, (left, right)| {
                differs | (left.load(Ordering::Relaxed) ^ right.load(Ordering::Relaxed))
            });
            if differs != 0 {
                differing.insert(i);
            }
        }
        differing
    }

    /// Whether `len` bytes (a multiple of 512) are all zero.
    ///
    /// # Panics
    /// If a byte lies outside.
    pub fn is_zero(&self, buf: Buf, len: u32) -> bool {
        assert!(len.is_multiple_of(512), "{len} bytes are no whole sectors");
        self.words(buf, len)
            .chunks(64)
            .all(|words| words.iter().fold(0, |or, word| or | word.load(Ordering::Relaxed)) == 0)
    }

    /// The bytes as a slice, for what cannot work on a copy.
    ///
    /// # Safety
    /// Until the slice is gone nobody may write these bytes: no thread, no operation in flight, no guest request whose
    /// buffer the kernel's driver still fills, and no [`populate`](Self::populate) that gives them back. The core's
    /// ownership rule grants that to whoever handles a buffer between the completion that handed it over and the
    /// `handle_*` that hands it back.
    ///
    /// # Panics
    /// If a byte lies outside.
    pub unsafe fn slice(&self, buf: Buf, len: u32) -> &[u8] {
        let at = self.span(buf, u64::from(len));
        // SAFETY: in bounds of a mapping that outlives `self`; anonymous memory is always initialised; the caller
        // grants that nobody writes it.
        unsafe { std::slice::from_raw_parts(at, len as usize) }
    }

    fn words(&self, buf: Buf, len: u32) -> &[AtomicU64] {
        let at = self.span(buf, u64::from(len)).cast::<AtomicU64>();
        // SAFETY: in bounds; a `Buf` is aligned to 512 and the base to a page; atomics may be written through other
        // pointers while they are borrowed.
        unsafe { std::slice::from_raw_parts(at, len as usize / 8) }
    }

    #[inline]
    fn check(&self, offset: u64, len: u64) {
        assert!(
            len <= self.len && offset <= self.len - len,
            "{len} bytes at {offset} lie outside an arena of {} bytes",
            self.len
        );
    }

    #[inline]
    fn at(&self, offset: u64) -> *mut u8 {
        debug_assert!(offset <= self.len);
        // SAFETY: `offset` is at most `len`, checked by every caller, and the zeroes lie behind that, all in one
        // mapping.
        unsafe { self.base.as_ptr().add(offset as usize) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours; whoever had operations in flight held an `Arc` of this value, and there is none
        // left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.mapped) };
    }
}

/// Copy bytes that others may be writing at the same time, without undefined behaviour: an ordinary `memcpy` of them
/// would be a data race.
///
/// # Safety
/// `len` bytes at `from` may be read and `len` bytes at `to` may be written, and they do not overlap (or are the same).
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn shared_copy(from: *const u8, to: *mut u8, len: usize) {
    // Instructions that the processor carries out a cache line at a time: the compiler knows nothing of them but that
    // memory changes, and the hardware defines what it sees. By words, which is as fast where strings of bytes are, and
    // several times as fast where they are not; payloads are whole words.
    // SAFETY: the direction flag is clear by the ABI; the caller grants the bytes.
    unsafe {
        std::arch::asm!(
            "rep movsq",
            "mov ecx, {rest:e}",
            "rep movsb",
            rest = in(reg) len % 8,
            inout("rcx") len / 8 => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
}

/// As above, for processors without a string copy: by relaxed atomic words.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
unsafe fn shared_copy(from: *const u8, to: *mut u8, len: usize) {
    let mut done = 0;
    if (from as usize | to as usize).is_multiple_of(8) {
        while done + 8 <= len {
            // SAFETY: in bounds and aligned; the caller grants the bytes.
            unsafe {
                let word = AtomicU64::from_ptr(from.add(done).cast_mut().cast()).load(Ordering::Relaxed);
                AtomicU64::from_ptr(to.add(done).cast()).store(word, Ordering::Relaxed);
            }
            done += 8;
        }
    }
    while done < len {
        // SAFETY: as above; any address is aligned for a byte.
        unsafe {
            let byte = AtomicU8::from_ptr(from.add(done).cast_mut()).load(Ordering::Relaxed);
            AtomicU8::from_ptr(to.add(done)).store(byte, Ordering::Relaxed);
        }
        done += 1;
    }
}

fn page_size() -> u64 {
    // SAFETY: asks for a constant.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages_resident(arena: &Arena, start: u64, len: u64) -> usize {
        let mut residency = vec![0_u8; len.div_ceil(page_size()) as usize];
        // SAFETY: the range is mapped and the vector has a byte for each page.
        let result = unsafe { libc::mincore(arena.at(start).cast(), len as usize, residency.as_mut_ptr()) };
        assert_eq!(result, 0);
        residency.iter().filter(|&&page| page & 1 != 0).count()
    }

    #[test]
    fn a_large_reservation_takes_no_memory_until_it_is_populated() {
        let arena = Arena::reserve(64 << 30).unwrap();
        let page = page_size();
        assert_eq!(pages_resident(&arena, 0, 16 * page), 0);
        let _ = arena.populate(4 * page, 2 * page, true);
        assert_eq!(pages_resident(&arena, 0, 16 * page), 2);
        arena.populate(4 * page, 2 * page, false).unwrap();
        assert_eq!(pages_resident(&arena, 0, 16 * page), 0);
    }

    #[test]
    fn populating_keeps_content_and_giving_back_leaves_zeroes() {
        let arena = Arena::reserve(1 << 20).unwrap();
        arena.write(Buf::at(512), &[7; 1024]);
        let _ = arena.populate(0, 8192, true);
        let mut bytes = [0; 1024];
        arena.read(Buf::at(512), &mut bytes);
        assert_eq!(bytes, [7; 1024]);
        arena.populate(0, 8192, false).unwrap();
        assert!(arena.is_zero(Buf::at(0), 8192));
    }

    #[test]
    fn what_is_held_is_never_given_back() {
        let arena = Arena::reserve(1 << 20).unwrap();
        let page = page_size();
        let _ = arena.populate(0, 4 * page, true);
        arena.hold(2 * page - 512);
        let bytes = vec![9; 4 * page as usize];
        arena.write(Buf::at(0), &bytes);
        let pages: Vec<*mut u8> = (0..4).map(|i| arena.ptr(Buf::at(i * page))).collect();
        arena.populate(0, 4 * page, false).unwrap();
        // SAFETY: in the arena.
        let values: Vec<u8> = pages.iter().map(|&at| unsafe { at.read_volatile() }).collect();
        assert_eq!(values, [9, 9, 0, 0]);
    }

    #[test]
    fn giving_back_part_of_a_page_keeps_its_neighbours() {
        let arena = Arena::reserve(1 << 20).unwrap();
        arena.write(Buf::at(0), &[9; 16384]);
        arena.populate(512, 12288, false).unwrap();
        let mut bytes = vec![0; 16384];
        arena.read(Buf::at(0), &mut bytes);
        assert!(bytes[..4096].iter().all(|&byte| byte == 9));
        assert!(bytes[4096..12288].iter().all(|&byte| byte == 0));
        assert!(bytes[12288..].iter().all(|&byte| byte == 9));
    }

    #[test]
    fn a_copy_moves_exactly_its_bytes() {
        let arena = Arena::reserve(1 << 20).unwrap();
        let bytes: Vec<u8> = (0..4096_u32).map(|i| (i % 251) as u8 + 1).collect();
        arena.write(Buf::at(4096), &bytes);
        arena.copy(Buf::at(4096), Buf::at(65536), 1536);
        let mut copied = vec![0; 4096];
        arena.read(Buf::at(65536), &mut copied);
        assert_eq!(copied[..1536], bytes[..1536]);
        assert!(copied[1536..].iter().all(|&byte| byte == 0));
        assert!(arena.is_zero(Buf::at(65536 - 512), 512));
    }

    #[test]
    fn compare_names_each_differing_block_and_no_other() {
        let arena = Arena::reserve(4 << 20).unwrap();
        let (left, right) = (Buf::at(0), Buf::at(2 << 20));
        let len = BlockMask::SPAN as u32 - 512;
        for place in [0, 4095, 4096 * 63 + 1, 4096 * 64, 4096 * 255, 4096 * 256 - 513] {
            assert!(arena.compare(left, right, len).is_empty());
            arena.write(Buf::at(place / 512 * 512), &{
                let mut sector = [0; 512];
                sector[place as usize % 512] = 1;
                sector
            });
            let differing = arena.compare(left, right, len);
            for block in 0..256 {
                assert_eq!(
                    differing.contains(block),
                    block as u64 == place / 4096,
                    "block {block}, byte {place}"
                );
            }
            arena.write(Buf::at(place / 512 * 512), &[0; 512]);
        }
        arena.write(left.skip(u64::from(len)), &[1; 512]);
        assert!(
            arena.compare(left, right, len).is_empty(),
            "a byte behind the range was compared"
        );
    }

    #[test]
    #[should_panic(expected = "lie outside")]
    fn no_byte_behind_the_end_can_be_named() {
        let arena = Arena::reserve(4096).unwrap();
        let _ = arena.span(Buf::at(arena.len() - 512), 1024);
    }

    #[test]
    #[should_panic(expected = "lie outside")]
    fn a_length_that_wraps_around_is_outside() {
        let arena = Arena::reserve(4096).unwrap();
        let _ = arena.span(Buf::at(512), u64::MAX);
    }

    #[test]
    fn the_zeroes_are_all_zero_and_aligned() {
        let arena = Arena::reserve(4096).unwrap();
        assert!((arena.zeroes() as u64).is_multiple_of(page_size()));
        // SAFETY: read-only memory that nobody can write.
        let zeroes = unsafe { std::slice::from_raw_parts(arena.zeroes(), ZEROES as usize) };
        assert!(zeroes.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn nothing_can_be_written_into_the_zeroes() {
        let arena = Arena::reserve(4096).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let address = arena.zeroes() as u64;
        let line = maps.lines().find(|line| {
            let (range, _) = line.split_once(' ').unwrap();
            let (first, end) = range.split_once('-').unwrap();
            let number = |digits| u64::from_str_radix(digits, 16).unwrap();
            (number(first)..number(end)).contains(&address)
        });
        let access = line.unwrap().split(' ').nth(1);
        assert_eq!(access, Some("r--p"));
    }
}
