//! The engines that the suite is run on.

use crate::rig::{ARENA_BYTES, CAPACITY, MIB, Rig};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use twinblk::core::{Action, Buf, LegId, LegOp, OpId, Range};
use twinblk::io::faulty::{Fault, FaultyEngine, Rule, Stage, When};
use twinblk::io::memory::{MemoryEngine, Order};
use twinblk::io::uring::UringEngine;
use twinblk::io::{Arena, Engine};

/// A rig, or what this machine lacks for it.
pub type Made<E = Box<dyn Engine>> = Result<Rig<E>, String>;

fn arena() -> Arc<Arena> {
    Arc::new(Arena::reserve(ARENA_BYTES).unwrap())
}

fn memory_engine(order: Order, size: u64) -> (MemoryEngine, Arc<Arena>) {
    let arena = arena();
    let mut engine = MemoryEngine::new(arena.clone(), order);
    for leg in LegId::ALL {
        engine.set_leg(leg, Some(size));
    }
    (engine, arena)
}

fn memory(order: Order) -> Made {
    let size = 3 * MIB + 512;
    let (engine, arena) = memory_engine(order, size);
    Ok(Rig::new(Box::new(engine), arena, size, 512))
}

pub fn memory_in_order() -> Made {
    memory(Order::Submission)
}

pub fn memory_shuffled() -> Made {
    memory(Order::Shuffled(7))
}

fn delay(per_million: u32, operations: u64, stage: Stage) -> Rule {
    Rule::new(When::Chance { per_million }, Fault::Delay { operations, stage })
}

pub fn faulty_rig(rules: &[Rule]) -> Rig<FaultyEngine<MemoryEngine>> {
    let size = 3 * MIB + 512;
    let (engine, arena) = memory_engine(Order::Shuffled(3), size);
    let mut engine = FaultyEngine::new(engine, 5, 512);
    for rule in rules {
        engine.add(*rule);
    }
    Rig::new(engine, arena, size, 512)
}

fn faulty(rules: &[Rule]) -> Made {
    let Rig {
        engine,
        arena,
        size,
        block,
        ..
    } = faulty_rig(rules);
    Ok(Rig::new(Box::new(engine), arena, size, block))
}

pub fn faulty_without_faults() -> Made {
    faulty(&[])
}

pub fn faulty_with_delays() -> Made {
    faulty(&[delay(300_000, 3, Stage::Before), delay(300_000, 20, Stage::After)])
}

/// A directory that goes away with its content.
pub struct Directory(pub PathBuf);

impl Directory {
    fn new(parent: &Path) -> io::Result<Directory> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("engines-{}-{next}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Directory(path))
    }

    pub fn on_disk() -> Directory {
        Directory::new(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub fn open(path: &Path, flags: i32) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(flags)
        .open(path)
}

pub fn uring_on(files: [File; 2], size: u64, block: u64) -> Rig<UringEngine> {
    let arena = arena();
    let mut engine = UringEngine::new(arena.clone(), CAPACITY).unwrap();
    for (leg, file) in LegId::ALL.into_iter().zip(files) {
        engine.set_leg(leg, Some(Arc::new(OwnedFd::from(file))));
    }
    Rig::new(engine, arena, size, block)
}

fn boxed(rig: Rig<UringEngine>, keep: Vec<Box<dyn std::any::Any>>) -> Rig {
    let Rig {
        engine,
        arena,
        size,
        block,
        next,
        ..
    } = rig;
    Rig {
        engine: Box::new(engine),
        arena,
        size,
        block,
        next,
        _keep: keep,
    }
}

/// The smallest block that direct I/O on the file takes: 512 or 4096.
fn direct_block(file: &File) -> Result<u64, String> {
    let arena = Arc::new(Arena::reserve(MIB).unwrap());
    file.set_len(MIB)
        .map_err(|error| format!("cannot grow a file: {error}"))?;
    let mut engine = UringEngine::new(arena, 1).unwrap();
    engine.set_leg(LegId::A, Some(Arc::new(OwnedFd::from(file.try_clone().unwrap()))));
    for block in [512, 4096] {
        let id = OpId(block);
        let range = Range::new(block, block);
        engine.submit(LegOp {
            id,
            leg: LegId::A,
            action: Action::Read,
            range,
            buf: Buf(8),
        });
        let mut ended = Vec::new();
        engine.wait(1, &mut ended).unwrap();
        if ended == [(id, Ok(()))] {
            return Ok(block);
        }
    }
    Err("direct I/O in blocks of 4096 bytes fails here".to_owned())
}

fn direct_files() -> Result<([File; 2], u64, u64, Directory), String> {
    let directory = Directory::on_disk();
    let files = ["a", "b"].map(|name| open(&directory.0.join(name), libc::O_DIRECT));
    let [Ok(a), Ok(b)] = files else {
        return Err(format!("no O_DIRECT on the file system of {}", directory.0.display()));
    };
    let block = direct_block(&a)?;
    let size = 3 * MIB + block;
    a.set_len(size).unwrap();
    b.set_len(size).unwrap();
    Ok(([a, b], size, block, directory))
}

pub fn uring_on_direct_files() -> Made {
    let (files, size, block, directory) = direct_files()?;
    Ok(boxed(uring_on(files, size, block), vec![Box::new(directory)]))
}

fn plain_files(directory: Directory) -> Rig {
    let size = 3 * MIB + 512;
    let files = ["a", "b"].map(|name| open(&directory.0.join(name), 0).unwrap());
    for file in &files {
        file.set_len(size).unwrap();
    }
    boxed(uring_on(files, size, 512), vec![Box::new(directory)])
}

pub fn uring_on_buffered_files() -> Made {
    Ok(plain_files(Directory::on_disk()))
}

/// A file system that punches holes and cannot zero a range otherwise.
pub fn uring_on_tmpfs() -> Made {
    let directory = Directory::new(Path::new("/dev/shm")).map_err(|error| format!("/dev/shm: {error}"))?;
    Ok(plain_files(directory))
}

/// A loop device; detached when dropped.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

fn loop_device(backing: &Path, sector: u64) -> Result<Loop, String> {
    let output = Command::new("losetup")
        .args(["--find", "--show", "--sector-size", &sector.to_string()])
        .arg(backing)
        .output()
        .map_err(|error| format!("cannot run losetup (package mount): {error}"))?;
    if output.status.success() {
        Ok(Loop(String::from_utf8(output.stdout).unwrap().trim().to_owned()))
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!(
            "no loop device (needs root and the loop driver): {}",
            said.trim()
        ))
    }
}

fn uring_on_loop_devices(sector: u64) -> Made {
    let directory = Directory::on_disk();
    // Not a multiple of 4096 where the sector allows it.
    let size = 3 * MIB + sector;
    let mut keep: Vec<Box<dyn std::any::Any>> = Vec::new();
    let mut files = Vec::new();
    for name in ["a", "b"] {
        let path = directory.0.join(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        let device = loop_device(&path, sector)?;
        let flags = libc::O_DIRECT | libc::O_EXCL;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(&device.0);
        files.push(file.map_err(|error| format!("{}: {error}", device.0))?);
        keep.push(Box::new(device));
    }
    keep.push(Box::new(directory));
    let files = files.try_into().unwrap();
    Ok(boxed(uring_on(files, size, sector), keep))
}

pub fn uring_on_loop_devices_of_512() -> Made {
    uring_on_loop_devices(512)
}

pub fn uring_on_loop_devices_of_4096() -> Made {
    uring_on_loop_devices(4096)
}
