//! Is there anything on this disk that somebody may want to keep?
//!
//! Blank means: no known signature, and the first and the last MiB and a sample spread over the disk read as zero. The
//! zeroes are what refuses; the signatures say what would be lost, and find those that lie elsewhere.
//!
//! Signatures are looked for by `wipefs --no-act` of util-linux, which is on every Debian, knows far more of them than we would, and is
//! kept up to date; a library of our own would know fewer, and a binding to libblkid would add a C library to link for
//! something that happens once in the life of a mirror. Where it cannot be run, a short table stands in for it.
//!
//! Not found: data that is neither at the ends nor in the sample, on a disk without a signature. Whoever names a disk of
//! noise with a zeroed head and tail names it on purpose.

use super::error::Error;
use serde::Deserialize;
use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Bytes at each end that must be zero.
const END: u64 = 1 << 20;
/// Pieces sampled between the ends.
const SAMPLES: u64 = 64;
/// Bytes of a piece.
const PIECE: u64 = 64 << 10;
/// Most findings that are worth listing.
const MAX_FOUND: usize = 8;
/// Alignment that every disk can be read with; logical blocks are not larger.
const ALIGN: usize = 4096;

/// What is on an open disk of `size` bytes, each finding in words; empty when it is blank.
///
/// # Errors
/// The disk cannot be read: it cannot be called blank then.
pub fn findings(disk: BorrowedFd<'_>, size: u64, block: u32, path: &Path) -> Result<Vec<String>, Error> {
    let signatures = signatures(disk, size, block, path)?;
    let mut found: Vec<String> = signatures.iter().map(ToString::to_string).take(MAX_FOUND).collect();
    let mut reader = Reader::new(disk, block, path)?;
    for (start, len) in pieces(size, u64::from(block)) {
        if let Some(at) = reader.first_nonzero(start, len)? {
            found.push(format!("data at byte {at}"));
            break;
        }
    }
    Ok(found)
}

/// What says what is on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Where its magic number begins.
    pub at: u64,
    /// The format's name.
    kind: String,
    /// The label and uuid that it gives.
    gives: String,
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} signature at byte {}{}", self.kind, self.at, self.gives)
    }
}

/// The signatures on an open disk of `size` bytes that a probe sees: one may hide others behind it.
///
/// # Errors
/// The disk cannot be read.
pub fn signatures(disk: BorrowedFd<'_>, size: u64, block: u32, path: &Path) -> Result<Vec<Signature>, Error> {
    match by_wipefs(disk) {
        Some(found) => Ok(found),
        None => by_table(&mut Reader::new(disk, block, path)?, size),
    }
}

/// What is read: both ends, and between them one piece at a place of its own in each of as many equal parts.
fn pieces(size: u64, block: u64) -> Vec<(u64, u64)> {
    let mut pieces = vec![(0, END.min(size))];
    if size > END {
        let last = size.saturating_sub(END).max(END);
        pieces.push((last, size - last));
    }
    let inner = size.saturating_sub(2 * END);
    // Seeded by the size alone: the same disk gets the same answer twice.
    let mut seed = size;
    for sample in 0..SAMPLES {
        let (from, to) = (inner / SAMPLES * sample, inner / SAMPLES * (sample + 1));
        let room = (to - from).saturating_sub(PIECE);
        let start = END + from + splitmix(&mut seed) % (room + 1);
        let start = start - start % block;
        pieces.push((start, PIECE.min(size.saturating_sub(END).saturating_sub(start))));
    }
    pieces.retain(|(_, len)| *len > 0);
    pieces
}

/// Sebastiano Vigna's SplitMix64.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Direct reads of whole blocks.
struct Reader {
    file: std::fs::File,
    block: u64,
    path: PathBuf,
    buffer: Vec<u8>,
    /// Where the aligned part of the buffer begins.
    skip: usize,
}

impl Reader {
    fn new(disk: BorrowedFd<'_>, block: u32, path: &Path) -> Result<Reader, Error> {
        let disk = disk
            .try_clone_to_owned()
            .map_err(Error::io("share the descriptor", path))?;
        let buffer = vec![0; PIECE as usize + ALIGN];
        let skip = buffer.as_ptr().align_offset(ALIGN);
        Ok(Reader {
            file: disk.into(),
            block: block.into(),
            path: path.to_path_buf(),
            buffer,
            skip,
        })
    }

    /// Up to `len` bytes from `start`, which lie in one piece; fewer only at the end of the disk.
    fn read(&mut self, start: u64, len: u64) -> Result<&[u8], Error> {
        let first = start - start % self.block;
        let end = (start + len).next_multiple_of(self.block);
        let wanted = (end - first) as usize;
        let buffer = &mut self.buffer[self.skip..self.skip + wanted];
        let mut done = 0;
        while done < wanted {
            match self.file.read_at(&mut buffer[done..], first + done as u64) {
                Ok(0) => break,
                Ok(got) => done += got,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read it to see whether it is blank", &self.path)(error)),
            }
        }
        let from = ((start - first) as usize).min(done);
        Ok(&buffer[from..done.min(from + len as usize)])
    }

    fn first_nonzero(&mut self, start: u64, len: u64) -> Result<Option<u64>, Error> {
        let mut at = start;
        while at < start + len {
            let part = (start + len - at).min(PIECE - self.block);
            let part = if part == start + len - at {
                part
            } else {
                part - part % self.block
            };
            if let Some(index) = self.read(at, part)?.iter().position(|&byte| byte != 0) {
                return Ok(Some(at + index as u64));
            }
            at += part;
        }
        Ok(None)
    }
}

#[derive(Deserialize)]
struct WipefsOutput {
    #[serde(default)]
    signatures: Vec<WipefsSignature>,
}

#[derive(Deserialize)]
struct WipefsSignature {
    offset: String,
    #[serde(rename = "type")]
    kind: String,
    label: Option<String>,
    uuid: Option<String>,
}

/// What `wipefs` finds; `None` when it cannot be run, or says nothing that can be understood.
fn by_wipefs(disk: BorrowedFd<'_>) -> Option<Vec<Signature>> {
    let program = ["/usr/sbin/wipefs", "/sbin/wipefs", "/usr/bin/wipefs"]
        .into_iter()
        .find(|path| Path::new(path).exists())?;
    // By way of this process, so that it looks at this very inode.
    let node = format!("/proc/{}/fd/{}", std::process::id(), disk.as_raw_fd());
    let output = Command::new(program)
        .args(["--no-act", "--json", &node])
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    parse_wipefs(&output.stdout)
}

fn parse_wipefs(output: &[u8]) -> Option<Vec<Signature>> {
    // Some versions print nothing at all where there is nothing.
    if output.trim_ascii().is_empty() {
        return Some(Vec::new());
    }
    let output: WipefsOutput = serde_json::from_slice(output).ok()?;
    let read = |signature: WipefsSignature| {
        let at = u64::from_str_radix(signature.offset.trim_start_matches("0x"), 16).ok()?;
        let mut gives = String::new();
        if let Some(label) = signature.label.filter(|label| !label.is_empty()) {
            gives += &format!(", label {label:?}");
        }
        if let Some(uuid) = signature.uuid.filter(|uuid| !uuid.is_empty()) {
            gives += &format!(", uuid {uuid}");
        }
        let kind = signature.kind;
        Some(Signature { at, kind, gives })
    };
    output.signatures.into_iter().map(read).collect()
}

/// Name, offset (from the end where negative), magic bytes.
type Magic = (&'static str, i64, &'static [u8]);

/// What stands in for `wipefs`. Offsets are those of the formats' own documentation.
const SIGNATURES: &[Magic] = &[
    ("gpt", 512, b"EFI PART"),
    ("gpt", 4096, b"EFI PART"),
    ("gpt (backup)", -512, b"EFI PART"),
    ("gpt (backup)", -4096, b"EFI PART"),
    ("dos partition table or boot sector", 510, &[0x55, 0xaa]),
    ("ext2/3/4", 0x438, &[0x53, 0xef]),
    ("xfs", 0, b"XFSB"),
    ("btrfs", 0x1_0040, b"_BHRfS_M"),
    ("LVM2 physical volume", 0x218, b"LVM2 001"),
    ("LVM2 physical volume", 0x018, b"LVM2 001"),
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("LUKS (second header)", 0x4000, b"SKUL\xba\xbe"),
    ("md raid 1.1", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("md raid 1.2", 0x1000, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("swap", 4086, b"SWAPSPACE2"),
    ("swap", 65526, b"SWAPSPACE2"),
    (
        "bcache",
        0x1018,
        &[
            0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81,
        ],
    ),
    ("zfs", 0x2_1000, &[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0]),
    ("f2fs", 0x400, &[0x10, 0x20, 0xf5, 0xf2]),
    ("ntfs", 3, b"NTFS    "),
    ("iso9660", 0x8001, b"CD001"),
    ("bluestore", 0, b"bluestore block device"),
    ("drbd", -4036, &[0x83, 0x74, 0x02, 0x6c]),
];

fn by_table(reader: &mut Reader, size: u64) -> Result<Vec<Signature>, Error> {
    let mut found = Vec::new();
    let named = |at, name: &str| Signature {
        at,
        kind: name.into(),
        gives: String::new(),
    };
    for &(name, offset, magic) in SIGNATURES {
        let at = if offset < 0 {
            size.checked_sub(offset.unsigned_abs())
        } else {
            Some(offset.unsigned_abs())
        };
        let Some(at) = at.filter(|at| at + magic.len() as u64 <= size) else {
            continue;
        };
        if reader.read(at, magic.len() as u64)? == magic {
            found.push(named(at, name));
        }
    }
    // md 0.90 and 1.0 lie at the end, at a place that depends on the size.
    for (name, at) in [
        ("md raid 0.90", (size & !0xffff).checked_sub(0x1_0000)),
        ("md raid 1.0", (size & !0xfff).checked_sub(0x2000)),
    ] {
        if let Some(at) = at
            && reader.read(at, 4)? == [0xfc, 0x4e, 0x2b, 0xa9]
        {
            found.push(named(at, name));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    fn sparse(size: u64, writes: &[(u64, &[u8])]) -> File {
        let file = tempfile();
        file.set_len(size).expect("a sparse file");
        for (at, bytes) in writes {
            file.write_all_at(bytes, *at).expect("a small write");
        }
        file
    }

    fn tempfile() -> File {
        let path = std::env::temp_dir().join(format!(
            "twinblk-blank-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .expect("a file");
        std::fs::remove_file(&path).expect("its name goes away at once");
        file
    }

    fn findings_of(file: &File, size: u64) -> Vec<String> {
        findings(file.as_fd(), size, 512, Path::new("test")).expect("it can be read")
    }

    fn table_of(file: &File, size: u64) -> Vec<String> {
        let mut reader = Reader::new(file.as_fd(), 512, Path::new("test")).expect("a reader");
        let found = by_table(&mut reader, size).expect("it can be read");
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn zeroes_of_any_size_are_blank() {
        for size in [
            512,
            4096,
            65536,
            1 << 20,
            (1 << 20) + 512,
            (2 << 20) - 512,
            (2 << 20) + 512,
            10 << 20,
            1 << 30,
        ] {
            let file = sparse(size, &[]);
            assert_eq!(findings_of(&file, size), Vec::<String>::new(), "{size}");
            assert_eq!(table_of(&file, size), Vec::<String>::new(), "{size}");
        }
    }

    #[test]
    fn one_byte_anywhere_in_the_first_or_last_mib_is_found() {
        let size = (64 << 20) + 512;
        for at in [0, 511, 1000, 65535, END - 1, size - END, size - END + 70_000, size - 1] {
            let file = sparse(size, &[(at, &[1])]);
            assert_eq!(findings_of(&file, size), [format!("data at byte {at}")]);
        }
    }

    #[test]
    fn a_disk_with_zeroed_ends_and_data_between_is_not_blank() {
        let size = 64 << 20;
        let file = sparse(size, &[(END, &vec![0x5a; (size - 2 * END) as usize])]);
        assert_eq!(findings_of(&file, size).len(), 1);
    }

    #[test]
    fn the_sample_is_spread_over_the_disk_and_within_it() {
        for size in [
            512,
            END,
            END + 512,
            2 * END,
            2 * END + 512,
            2 * END + 4096 * 64,
            1 << 30,
            (1 << 40) + 512,
        ] {
            let pieces = pieces(size, 512);
            for (start, len) in &pieces {
                assert!(start % 512 == 0 && start + len <= size, "{size}: {start}+{len}");
            }
            if size >= 1 << 30 {
                let part = (size - 2 * END) / SAMPLES;
                for sample in 0..SAMPLES {
                    let from = END + part * sample;
                    // Rounding down to a block may take a piece a little into the part before.
                    let within = |start: u64| start + 512 > from && start < from + part;
                    assert!(pieces.iter().any(|(start, _)| within(*start)), "{size}: part {sample}");
                }
            }
        }
    }

    #[test]
    fn every_signature_of_the_table_is_found_by_its_name() {
        let size = 16 << 20;
        for &(name, offset, magic) in SIGNATURES {
            let at = if offset < 0 {
                size - offset.unsigned_abs()
            } else {
                offset.unsigned_abs()
            };
            let file = sparse(size, &[(at, magic)]);
            let found = table_of(&file, size);
            assert!(
                found.contains(&format!("{name} signature at byte {at}")),
                "{name}: {found:?}"
            );
        }
    }

    #[test]
    fn what_wipefs_prints_is_put_in_words() {
        let printed = br#"{"signatures":[{"device":"f","offset":"0x438","type":"ext4","uuid":"04a2","label":"data"},
            {"device":"f","offset":"0x1fe","type":"dos","uuid":null,"label":null}]}"#;
        let found = parse_wipefs(printed).expect("it is valid");
        assert_eq!(
            found.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "ext4 signature at byte 1080, label \"data\", uuid 04a2",
                "dos signature at byte 510"
            ]
        );
        assert_eq!(parse_wipefs(b"\n"), Some(Vec::new()));
        assert_eq!(parse_wipefs(b"wipefs: error"), None);
    }

    #[test]
    fn a_real_file_system_is_named() {
        let size = 16 << 20;
        let file = sparse(size, &[]);
        let node = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        match Command::new("/usr/sbin/mkfs.ext4")
            .args(["-q", "-F", "-L", "keepme", &node])
            .status()
        {
            Ok(status) if status.success() => {}
            other => return println!("skipped: /usr/sbin/mkfs.ext4 of e2fsprogs cannot be run: {other:?}"),
        }
        let found = findings_of(&file, size);
        assert!(found[0].starts_with("ext"), "{found:?}");
        assert!(
            by_wipefs(file.as_fd()).is_none_or(|found| found[0].to_string().contains("keepme")),
            "{found:?}"
        );
    }
}
