//! Plain reading and writing of an open disk past the page cache, for the few blocks that are looked at or changed outside of
//! an engine. Offsets and lengths are multiples of the disk's logical block size.

use super::open::Disk;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

/// Alignment that every disk can be read and written with; logical blocks are not larger.
const ALIGN: usize = 4096;

/// An open disk.
#[derive(Debug)]
pub struct Direct(File);

/// Memory that direct I/O can use.
struct Buffer {
    bytes: Vec<u8>,
    skip: usize,
    len: usize,
}

impl Buffer {
    fn new(len: usize) -> Buffer {
        let bytes = vec![0; len + ALIGN];
        let skip = bytes.as_ptr().align_offset(ALIGN);
        Buffer { bytes, skip, len }
    }

    fn aligned(&mut self) -> &mut [u8] {
        &mut self.bytes[self.skip..self.skip + self.len]
    }
}

impl Direct {
    /// By the disk's own descriptor, so with its claim.
    ///
    /// # Errors
    /// The descriptor cannot be shared.
    pub fn new(disk: &Disk) -> io::Result<Direct> {
        Ok(Direct(disk.descriptor.as_fd().try_clone_to_owned()?.into()))
    }

    /// `len` bytes from `start` on; fewer only at the end of the disk.
    ///
    /// # Errors
    /// The disk's.
    pub fn read(&self, start: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut buffer = Buffer::new(len);
        let bytes = buffer.aligned();
        let mut done = 0;
        while done < len {
            match self.0.read_at(&mut bytes[done..], start + done as u64) {
                Ok(0) => break,
                Ok(got) => done += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bytes[..done].to_vec())
    }

    /// Write all of `content` from `start` on.
    ///
    /// # Errors
    /// The disk's; some of it may be written then.
    pub fn write(&self, start: u64, content: &[u8]) -> io::Result<()> {
        let mut buffer = Buffer::new(content.len());
        let bytes = buffer.aligned();
        bytes.copy_from_slice(content);
        self.0.write_all_at(bytes, start)
    }

    /// Make durable what was written.
    ///
    /// # Errors
    /// The disk's; nothing that was written counts as durable then.
    pub fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
