//! `write`: the writers at work.

use crate::aligned::Aligned;
use crate::block::{self, Known, MAX_WRITERS, PerWriter, Seen, Stamp};
use crate::journal;
use crate::plan::{MAX_BYTES, Op, Params, Plan};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A number of each writer that only grows. Sequentially consistent: what one writer learns of another must have happened
/// before whatever it submits afterwards, and speed does not matter.
#[derive(Default)]
struct Marks([AtomicU32; MAX_WRITERS]);

impl Marks {
    fn raise(&self, writer: usize, number: u32) {
        self.0[writer].fetch_max(number, Ordering::SeqCst);
    }

    fn all(&self) -> PerWriter {
        std::array::from_fn(|writer| self.0[writer].load(Ordering::SeqCst))
    }
}

/// What the writers share.
struct Run<'a> {
    params: &'a Params,
    disk: &'a File,
    /// The same disk; a write to it is durable when it is acknowledged.
    forcing: &'a File,
    completed: Marks,
    durable: Marks,
    forced: Marks,
    out: Mutex<std::io::Stdout>,
    ending: Arc<AtomicBool>,
    last: Option<u32>,
    end: Option<Instant>,
}

/// Write.
///
/// # Errors
/// The disk fails, or gives back something else than was written.
pub fn run(args: &crate::Write) -> Result<(), String> {
    let (mut disk, forcing) = (open(&args.disk, 0)?, open(&args.disk, libc::O_DSYNC)?);
    let whole = disk.seek(SeekFrom::End(0)).map_err(|error| error.to_string())?;
    let params = Params {
        seed: args.seed,
        size: args.size.unwrap_or(whole).min(whole),
        block: args.block,
        writers: args.writers,
        sync_every: args.sync_every,
        forced: args.forced,
        reads: args.reads,
    };
    params.validate()?;
    let run = Run {
        params: &params,
        disk: &disk,
        forcing: &forcing,
        completed: Marks::default(),
        durable: Marks::default(),
        forced: Marks::default(),
        out: Mutex::new(std::io::stdout()),
        ending: Arc::new(AtomicBool::new(false)),
        last: args.writes,
        end: args
            .seconds
            .map(|seconds| Instant::now() + Duration::from_secs(seconds)),
    };
    run.say(&journal::load(&params))?;
    if args.until_line {
        let ending = Arc::clone(&run.ending);
        // Not waited for: it may never hear anything.
        thread::spawn(move || {
            // A failure is as good as the end.
            let _ = std::io::stdin().read_line(&mut String::new());
            ending.store(true, Ordering::SeqCst);
        });
    }
    let outcomes: Vec<Result<(), String>> = thread::scope(|scope| {
        let writers: Vec<_> = (0..params.writers)
            .map(|writer| {
                scope.spawn({
                    let run = &run;
                    move || {
                        let outcome = run.write(writer);
                        if outcome.is_err() {
                            run.ending.store(true, Ordering::SeqCst);
                        }
                        outcome.map_err(|error| format!("writer {writer}: {error}"))
                    }
                })
            })
            .collect();
        writers
            .into_iter()
            .map(|writer| writer.join().expect("a writer does not panic"))
            .collect()
    });
    outcomes.into_iter().collect::<Result<(), String>>()?;
    run.say("done\n")
}

fn open(path: &Path, flags: i32) -> Result<File, String> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT | flags)
        .open(path)
        .map_err(|error| format!("{}: {error}", path.display()))
}

impl Run<'_> {
    /// One line in one piece.
    fn say(&self, line: &str) -> Result<(), String> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        out.write_all(line.as_bytes())
            .and_then(|()| out.flush())
            .map_err(|error| format!("cannot write the journal: {error}"))
    }

    fn is_over(&self, next: u32) -> bool {
        self.ending.load(Ordering::SeqCst)
            || self.last.is_some_and(|last| next > last)
            || self.end.is_some_and(|end| Instant::now() >= end)
    }

    fn write(&self, writer: u16) -> Result<(), String> {
        let own = self.params.private(writer);
        // The number of the write that each block of its own range holds; 0: none of this run.
        let mut holds = vec![0; usize::try_from(own.end - own.start).expect("a range fits memory")];
        let mut buffer = Aligned::new(MAX_BYTES as usize);
        for op in Plan::new(self.params, writer) {
            match op {
                Op::Write { number, blocks, forced } => {
                    if self.is_over(number) {
                        return self.sync(writer);
                    }
                    self.put(writer, number, &blocks, forced, &mut buffer)?;
                    if own.contains(&blocks.start) {
                        holds[index(&blocks, &own)].fill(number);
                    }
                }
                Op::Sync => self.sync(writer)?,
                Op::Read { blocks } => self.compare(writer, &blocks, &holds[index(&blocks, &own)], &mut buffer)?,
            }
        }
        unreachable!("a plan does not end")
    }

    fn put(
        &self,
        writer: u16,
        number: u32,
        blocks: &Range<u64>,
        forced: bool,
        buffer: &mut Aligned,
    ) -> Result<(), String> {
        let known = Known {
            all: self.durable.all(),
            forced: self.forced.all(),
        };
        let bytes = buffer.first(self.length(blocks));
        for (block, place) in bytes.chunks_exact_mut(self.params.block as usize).zip(blocks.clone()) {
            let seed = self.params.seed;
            let stamp = Stamp {
                seed,
                place,
                writer,
                number,
                known,
            };
            block::write(block, &stamp);
        }
        let offset = self.params.bytes(blocks.start);
        let file = if forced { self.forcing } else { self.disk };
        file.write_all_at(bytes, offset)
            .map_err(|error| format!("write {number}, {} bytes at {offset}: {error}", bytes.len()))?;
        self.completed.raise(usize::from(writer), number);
        if forced {
            self.forced.raise(usize::from(writer), number);
            self.say(&journal::forced(writer, number))?;
        }
        Ok(())
    }

    fn sync(&self, writer: u16) -> Result<(), String> {
        // Before it is issued: what completes later is not covered.
        let completed = self.completed.all();
        self.disk.sync_data().map_err(|error| format!("fsync: {error}"))?;
        for (writer, number) in completed.iter().enumerate() {
            self.durable.raise(writer, *number);
        }
        self.say(&journal::synced(writer, &completed[..usize::from(self.params.writers)]))
    }

    fn compare(&self, writer: u16, blocks: &Range<u64>, holds: &[u32], buffer: &mut Aligned) -> Result<(), String> {
        let bytes = buffer.first(self.length(blocks));
        let offset = self.params.bytes(blocks.start);
        self.disk
            .read_exact_at(bytes, offset)
            .map_err(|error| format!("read of {} bytes at {offset}: {error}", bytes.len()))?;
        for ((block, place), wanted) in bytes
            .chunks_exact(self.params.block as usize)
            .zip(blocks.clone())
            .zip(holds)
        {
            // What was there before the run is not known.
            if *wanted == 0 {
                continue;
            }
            let seen = block::read(block);
            let is_right = matches!(&seen, Seen::Written(stamp) if stamp.seed == self.params.seed
                && (stamp.place, stamp.writer, stamp.number) == (place, writer, *wanted));
            if !is_right {
                return Err(format!(
                    "read at {}: wrote number {wanted} there, found {seen:?}",
                    self.params.bytes(place)
                ));
            }
        }
        Ok(())
    }

    fn length(&self, blocks: &Range<u64>) -> usize {
        usize::try_from(self.params.bytes(blocks.end - blocks.start)).expect("a write is short")
    }
}

/// Where `blocks` are in their range.
fn index(blocks: &Range<u64>, range: &Range<u64>) -> Range<usize> {
    let at = |block: u64| usize::try_from(block - range.start).expect("a range fits memory");
    at(blocks.start)..at(blocks.end)
}
