//! Sends and receives descriptors with bytes over a unix socket (`SCM_RIGHTS`).
//!
//! A descriptor that is received is owned at once and closes on exec, so none is lost whatever happens next. It does
//! not decide which descriptor belongs to which message; that is the caller's protocol.

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// The most descriptors that one message can bring; the kernel closes those beyond.
pub const MAX_DESCRIPTORS: usize = 4;

/// Write some of `bytes`, the first of them together with `descriptors`; says how many.
///
/// # Errors
/// As for a write; a send time-out of the socket is `WouldBlock`, and nothing was sent then.
///
/// # Panics
/// Panics without a byte to send descriptors with, or with more than [`MAX_DESCRIPTORS`].
pub fn send(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    assert!(
        descriptors.is_empty() || !bytes.is_empty(),
        "descriptors travel with a byte"
    );
    assert!(
        descriptors.len() <= MAX_DESCRIPTORS,
        "more descriptors than a receiver takes"
    );
    let rights: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&rights)];
    let control = if rights.is_empty() { &[] } else { &control[..] };
    loop {
        // Without MSG_NOSIGNAL a peer that is gone would kill a process that did not ignore SIGPIPE.
        match sendmsg::<()>(
            stream.as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Read what is there, at most `buffer.len()` bytes, waiting for the first; 0 is the end. Descriptors that came with it
/// are appended to `descriptors`.
///
/// # Errors
/// As for a read; a receive time-out of the socket is `WouldBlock`.
pub fn receive(stream: &UnixStream, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    loop {
        let mut slice = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        let mut control = Control {
            bytes: [0; CONTROL_BYTES],
            _align: [],
        };
        // SAFETY: `msghdr` is a C struct of integers and pointers, for which all zeroes is a value.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = &mut slice;
        message.msg_iovlen = 1;
        message.msg_control = control.bytes.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_BYTES as _;
        // SAFETY: `message` names one slice and one control buffer with their true lengths; both outlive the call.
        let received = unsafe { libc::recvmsg(stream.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) };
        if received >= 0 {
            // SAFETY: the kernel has just filled `message`, whose control buffer is still there.
            unsafe { take_descriptors(&message, descriptors) };
            return Ok(received.cast_unsigned());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Own every descriptor that the kernel reports, also when it says that there were more than fit (`MSG_CTRUNC`): those
/// it reports are installed, those it does not are closed. (nix's `recvmsg` gives none of them then, and they leak.)
///
/// # Safety
/// `message` is as `recvmsg` filled it, its control buffer is alive, and no descriptor of it was taken before.
unsafe fn take_descriptors(message: &libc::msghdr, descriptors: &mut Vec<OwnedFd>) {
    // SAFETY: the caller vouches for the control buffer, and the macros stay inside its length.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: the macros yield null or a header that lies within the control buffer, which is aligned for one.
        let (level, kind, len) = unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len as usize) };
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            // SAFETY: the length of no data is a plain calculation.
            let data_len = len.saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
            for index in 0..data_len / size_of::<RawFd>() {
                // SAFETY: the data of the header holds `data_len` bytes of descriptors; it may be unaligned.
                let raw = unsafe { libc::CMSG_DATA(header).cast::<RawFd>().add(index).read_unaligned() };
                // SAFETY: the kernel has just installed this descriptor for this process and reports it once; nobody
                // else knows it.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(raw) });
            }
        }
        // SAFETY: as for the first header.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
}

/// Room for [`MAX_DESCRIPTORS`] descriptors in one control message.
// SAFETY: a plain calculation.
const CONTROL_BYTES: usize = unsafe { libc::CMSG_SPACE((MAX_DESCRIPTORS * size_of::<RawFd>()) as u32) } as usize;

/// A control buffer, aligned for its header.
#[repr(C)]
struct Control {
    _align: [libc::cmsghdr; 0],
    bytes: [u8; CONTROL_BYTES],
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::os::fd::AsFd;

    fn memory_file(content: &[u8]) -> std::fs::File {
        let fd = nix::sys::memfd::memfd_create(c"test", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        let mut file = std::fs::File::from(fd);
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn a_descriptor_arrives_with_the_first_byte_and_is_the_same_file() {
        let (left, right) = UnixStream::pair().unwrap();
        let file = memory_file(b"content");
        assert_eq!(send(&left, b"line\n", &[file.as_fd()]).unwrap(), 5);
        let (mut buffer, mut descriptors) = ([0; 1], Vec::new());
        assert_eq!(receive(&right, &mut buffer, &mut descriptors).unwrap(), 1);
        assert_eq!(descriptors.len(), 1);
        let mut received = std::fs::File::from(descriptors.remove(0));
        received.seek(SeekFrom::Start(0)).unwrap();
        let mut text = String::new();
        received.read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
        let flags = nix::fcntl::fcntl(&received, nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_ne!(flags & nix::libc::FD_CLOEXEC, 0, "a child must not inherit it");
    }

    #[test]
    fn more_descriptors_than_fit_leak_nothing() {
        let (left, right) = UnixStream::pair().unwrap();
        let file = memory_file(b"");
        let raw = [file.as_raw_fd(); 2 * MAX_DESCRIPTORS];
        let rights = [ControlMessage::ScmRights(&raw)];
        sendmsg::<()>(
            left.as_raw_fd(),
            &[IoSlice::new(b"x")],
            &rights,
            MsgFlags::empty(),
            None,
        )
        .unwrap();
        let (mut buffer, mut descriptors) = ([0; 8], Vec::new());
        assert_eq!(receive(&right, &mut buffer, &mut descriptors).unwrap(), 1);
        let inode = |fd: BorrowedFd<'_>| nix::sys::stat::fstat(fd).unwrap().st_ino;
        let ours = inode(file.as_fd());
        // Every descriptor of this process that is this file: our own and those received, none beside.
        let open = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| std::fs::metadata(entry.unwrap().path()).ok())
            .filter(|meta| std::os::unix::fs::MetadataExt::ino(meta) == ours)
            .count();
        assert_eq!(open, 1 + descriptors.len());
        assert!(descriptors.len() <= MAX_DESCRIPTORS);
    }
}
