//! A device whose take-over was begun by a daemon that died before it had fetched anything.
//!
//! Linux 6.12 refuses to begin another one then (EINVAL): it counts a daemon by what it has fetched. And if the dead one had mapped the
//! request descriptors, it lets nobody else map them: it forgets who has only when a take-over begins. Fetching needs no mapping. So every
//! tag is fetched here by a thread that ends at once: for the driver that is a daemon that has died, which can be followed by another.
//!
//! *Why nothing is served by it:* the driver passes requests on only when a take-over has been ended, which nobody does here. They wait, as
//! they did.

use super::ControlError;
use super::queue::fetch;
use io_uring::{IoUring, cqueue, squeue};
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::thread;
use twinblk::core::Tag;

/// Fetch every tag of the device and let go of it.
///
/// # Errors
/// The character device cannot be opened, or the driver refuses.
pub fn fetch_all(id: u32, depth: u16) -> Result<(), ControlError> {
    const WHAT: &str = "ending what a dead daemon has begun";
    let failed = |error: std::io::Error| ControlError::refused(WHAT, error.raw_os_error().unwrap_or(libc::EIO));
    // The driver takes it for gone when its thread is.
    let fetching = thread::Builder::new().name("fetch".into()).spawn(move || {
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/dev/ublkc{id}"))?;
        let mut ring: IoUring<squeue::Entry, cqueue::Entry> = IoUring::builder().build(u32::from(depth))?;
        ring.submitter().register_files(&[device.as_raw_fd()])?;
        // Nothing is ever put there; the driver wants to be told of a place.
        let mut place = 0_u64;
        for tag in 0..depth {
            let entry = fetch(Tag(tag), (&raw mut place).cast());
            // SAFETY: no request is passed on before a take-over is ended, so nothing is written to `place`.
            unsafe { ring.submission().push(&entry) }.map_err(|_| std::io::Error::from_raw_os_error(libc::EBUSY))?;
        }
        ring.submit()?;
        // A fetch that is taken stays; one that is refused comes back at once.
        match ring.completion().next() {
            Some(refused) => Err(std::io::Error::from_raw_os_error(-refused.result())),
            None => Ok(()),
        }
    });
    let fetched = fetching.map_err(failed)?.join();
    fetched
        .unwrap_or_else(|_| Err(std::io::Error::from_raw_os_error(libc::EIO)))
        .map_err(failed)
}
