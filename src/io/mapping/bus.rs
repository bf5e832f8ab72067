//! What a SIGBUS means: the mapping that it is in is lost, and the process goes on.
//!
//! The handler looks the address up among the registered mappings. If one has it, memory of zeroes takes the place of
//! all of it (not of the one page: whoever goes on would meet the next, and half a table is of no use) and it is marked
//! as lost, by system calls and atomics alone; the access is then made again, and finds zeroes. Anything else gets what
//! it would have got without a handler: the process ends.
//!
//! A registration is made before a mapping is touched and ended before it is unmapped, and nobody touches it
//! afterwards; so an address found here is one of the mapping as long as the handler runs.

use std::io;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Most mappings at a time: two tables of a device, one being made anew, and room for tests that run beside each other.
const MOST: usize = 64;

struct Slot {
    taken: AtomicBool,
    /// First address; 0 when there is none.
    start: AtomicUsize,
    /// Bytes.
    len: AtomicUsize,
    lost: AtomicBool,
}

static SLOTS: [Slot; MOST] = [const {
    Slot {
        taken: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        lost: AtomicBool::new(false),
    }
}; MOST];

/// A mapping that the handler knows.
#[derive(Debug)]
pub(super) struct Registration(usize);

impl Registration {
    pub(super) fn new(start: usize, len: usize) -> io::Result<Registration> {
        // Acquire and Release on `taken`: what the last owner left in the slot is seen, and written over.
        let free = SLOTS.iter().position(|slot| {
            slot.taken
                .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        });
        let index = free.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let slot = &SLOTS[index];
        slot.lost.store(false, Ordering::Relaxed);
        slot.len.store(len, Ordering::Relaxed);
        // Release: a handler that sees the address sees what was stored before.
        slot.start.store(start, Ordering::Release);
        Ok(Registration(index))
    }

    pub(super) fn is_lost(&self) -> bool {
        // Acquire: pairs with the Release of `lose` and of the handler.
        SLOTS[self.0].lost.load(Ordering::Acquire)
    }

    pub(super) fn lose(&self) {
        SLOTS[self.0].lost.store(true, Ordering::Release);
    }

    /// The mapping is about to go. Not to be used afterwards.
    pub(super) fn end(&self) {
        let slot = &SLOTS[self.0];
        slot.start.store(0, Ordering::Release);
        slot.taken.store(false, Ordering::Release);
    }
}

impl Slot {
    fn has(&self, address: usize) -> bool {
        // Acquire: with the address comes the length.
        let start = self.start.load(Ordering::Acquire);
        start != 0 && address >= start && address - start < self.len.load(Ordering::Relaxed)
    }

    /// Put zeroes in the place of the mapping. False: the system has no memory for that.
    fn replace(&self) -> bool {
        self.lost.store(true, Ordering::Release);
        let start = ptr::with_exposed_provenance_mut(self.start.load(Ordering::Acquire));
        // SAFETY: takes the place of the very mapping that was registered, which cannot be unmapped while a thread is
        // in the middle of an access to it. The kernel exchanges the two at once. Other threads that read see zeroes
        // instead of what the file has, as they might if the file had changed.
        let mapped = unsafe {
            libc::mmap(
                start,
                self.len.load(Ordering::Relaxed),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        mapped != libc::MAP_FAILED
    }
}

extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: `errno` belongs to this thread; who was interrupted may be about to read it.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { *errno };
    // SAFETY: with SA_SIGINFO the kernel passes what it says of the signal.
    let info = unsafe { &*info };
    // What a process sends has a code of 0 or below, and no address.
    let address = (info.si_code > 0).then(|| {
        // SAFETY: a SIGBUS of the kernel's says where; read as a number.
        unsafe { info.si_addr() }.addr()
    });
    let slot = address.and_then(|address| SLOTS.iter().find(|slot| slot.has(address)));
    if !slot.is_some_and(Slot::replace) {
        // SAFETY: both may be called in a handler. The signal stays blocked until the handler returns, and then ends
        // the process at the place where it came from.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
    // SAFETY: as above.
    unsafe { *errno = before };
}

/// Have the handler installed. Takes the place of whatever handled SIGBUS before.
pub(super) fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        // SAFETY: all zeroes is an action, with an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
        action.sa_sigaction = handler as libc::sighandler_t;
        // On the stack for signals, where a thread has one: its own may be small.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: the handler makes system calls and uses atomics only, and never unwinds.
        match unsafe { libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)),
        }
    });
    installed.map_err(io::Error::from_raw_os_error)
}
