//! The life of a device in the driver: added, started, stopped, deleted.
//!
//! Every command is bounded in time. Adding and starting go through libublk, which waits as long as the driver does, so
//! they run on a thread of their own, which is left behind if the driver hangs. The others are one ring entry, waited
//! for with a timeout; closing the ring breaks the wait off.
//!
//! What the commands mean:
//! - *stop* ends the block device. The kernel first writes back what is cached, waits for the requests in flight, and
//!   then returns every fetch. Whoever has the device open gets errors from then on.
//! - *delete* frees the number. The driver keeps it until nobody has the block device open or mounted any more, and until
//!   the daemon's character device is closed, so a bounded wait may end before that.

use super::features::{Features, NEEDED};
use super::{ControlError, half_taken};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use libublk::ctrl::{UblkCtrl, UblkCtrlBuilder};
use libublk::io::UblkDev;
use libublk::{UblkFlags, sys};
use std::cell::OnceCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

const CONTROL: &str = "/dev/ublk-control";

/// How long the driver may take for a command that touches no disk.
const QUICK: Duration = Duration::from_secs(10);

/// How long starting may take: the kernel reads the partition table through the device before it returns.
const STARTING: Duration = Duration::from_secs(60);

/// How long stopping may take: the kernel writes back what is cached, and waits for what is in flight.
const STOPPING: Duration = Duration::from_secs(120);

/// What a device is added with.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Its number; `None`: the driver chooses.
    pub id: Option<u32>,
    /// Requests in flight.
    pub depth: u16,
    /// Largest read or write, in bytes: a multiple of the page size.
    pub max_io: u32,
    /// Size in bytes.
    pub size: u64,
    /// Logical block size in bytes, a power of two from 512 to a page.
    pub logical_block: u32,
    /// Physical block size in bytes, not below the logical one.
    pub physical_block: u32,
    /// Largest discard and zeroing, in bytes.
    pub max_discard: u32,
    /// What the device is known by: kept by the driver as long as it has the device.
    pub mark: u64,
}

/// A device that was added, or taken over, by this process.
#[derive(Clone)]
pub struct Added {
    control: Arc<UblkCtrl>,
    /// What the driver has for it; holds the character device open.
    pub(super) device: Arc<UblkDev>,
}

impl Added {
    /// Its number.
    pub fn id(&self) -> u32 {
        self.device.dev_info.dev_id
    }

    /// Start it. Every tag must have been fetched, or be fetched soon, and requests must be served meanwhile: the
    /// kernel looks for partitions.
    ///
    /// # Errors
    /// Fails when the driver refuses, or does not answer in time.
    pub fn start(&self) -> Result<(), ControlError> {
        let Added { control, device } = self.clone();
        bounded("starting the device", STARTING, move |what| {
            with_ring(what)?;
            let result = control
                .start_dev(&device)
                .map_err(|error| ControlError::from_libublk(what, error))?;
            answered(what, result)
        })
    }
}

/// Add a device.
///
/// # Errors
/// Fails when there is no driver, it lacks what is needed, refuses, or does not answer in time.
pub fn add(shape: Shape) -> Result<Added, ControlError> {
    Features::of_driver()?.check()?;
    let added = bounded("adding a device", QUICK, move |what| {
        open_device(what, &shape, UblkFlags::UBLK_DEV_F_ADD_DEV)
    })?;
    check_shape(&added, &shape).inspect_err(|_| {
        let _ = delete(added.id(), QUICK);
    })?;
    Ok(added)
}

/// Take over a device whose daemon is dead ([`State::Quiesced`]), with everybody who has it open: from its start on, the
/// requests that the dead daemon left unanswered come again. Until then, and if this process ends before, they wait.
///
/// # Errors
/// Fails when the driver refuses, or has not let go of the dead daemon within `wait`: an operation of its may not have
/// ended. The device is as it was.
pub fn take_over(shape: Shape, wait: Duration) -> Result<Added, ControlError> {
    const WHAT: &str = "taking the device over";
    let id = shape.id.expect("the device is there");
    let until = Instant::now() + wait;
    let mut fetched = false;
    while let Err(error) = command(WHAT, sys::UBLK_U_CMD_START_USER_RECOVERY, id, None, QUICK) {
        match error.errno() {
            // Its character device is still open, as long as something holds the dead process.
            Some(libc::EBUSY) => {}
            // What the driver says of a device that is taken over already, by somebody who died before it had fetched anything; and of one
            // that cannot be, which says the same of what follows.
            Some(libc::EINVAL) if fetched => break,
            Some(libc::EINVAL) => {
                log::info!("a daemon died while it took /dev/ublkb{id} over: ending what it had begun");
                fetched = true;
                half_taken::fetch_all(id, shape.depth)?;
            }
            _ => return Err(error),
        }
        if Instant::now() > until {
            return Err(ControlError::TimedOut {
                what: WHAT,
                waited: wait,
            });
        }
        // The guest waits meanwhile.
        std::thread::sleep(Duration::from_millis(5));
    }
    let added = bounded(WHAT, QUICK, move |what| {
        open_device(what, &shape, UblkFlags::UBLK_DEV_F_RECOVER_DEV)
    })?;
    check_shape(&added, &shape)?;
    Ok(added)
}

/// The device as libublk has it, with its character device open.
fn open_device(what: &'static str, shape: &Shape, flags: UblkFlags) -> Result<Added, ControlError> {
    let failed = |error| ControlError::from_libublk(what, error);
    let id = shape
        .id
        .map_or(Ok(-1), i32::try_from)
        .map_err(|_| ControlError::refused(what, libc::EINVAL))?;
    let control = UblkCtrlBuilder::default()
        .name("twinblk")
        .id(id)
        .nr_queues(1)
        .depth(shape.depth)
        .io_buf_bytes(shape.max_io)
        .ctrl_flags(NEEDED)
        .ctrl_target_flags(shape.mark)
        .dev_flags(flags)
        .build()
        .map_err(failed)?;
    // Else dropping it deletes the device, and waits for that without bound.
    control.disown();
    let parameters = parameters(shape);
    let size = shape.size;
    let configure = |device: &mut UblkDev| {
        device.tgt.dev_size = size;
        device.tgt.params = parameters;
        Ok(())
    };
    let device = UblkDev::new(control.get_name(), configure, &control).map_err(failed)?;
    Ok(Added {
        control: Arc::new(control),
        device: Arc::new(device),
    })
}

/// The kernel clears and lowers what it does not like, and says so only afterwards.
fn check_shape(added: &Added, shape: &Shape) -> Result<(), ControlError> {
    let got = added.device.dev_info;
    let missing = Features(NEEDED & !got.flags);
    let as_asked = missing.0 == 0
        && got.nr_hw_queues == 1
        && got.queue_depth == shape.depth
        && got.max_io_buf_bytes == shape.max_io
        && shape.id.is_none_or(|id| id == got.dev_id);
    if as_asked {
        return Ok(());
    }
    let missing = match missing.0 {
        0 => format!("devices of this shape (it made {got:?} of {shape:?})"),
        _ => missing.names().join(", "),
    };
    Err(ControlError::Lacks { missing })
}

fn parameters(shape: &Shape) -> sys::ublk_params {
    let sectors = |bytes: u32| bytes / 512;
    let shift = |bytes: u32| bytes.trailing_zeros() as u8;
    sys::ublk_params {
        types: sys::UBLK_PARAM_TYPE_BASIC | sys::UBLK_PARAM_TYPE_DISCARD,
        basic: sys::ublk_param_basic {
            // Without the cache no FLUSH ever arrives, and FUA is ignored.
            attrs: sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA,
            logical_bs_shift: shift(shape.logical_block),
            physical_bs_shift: shift(shape.physical_block),
            io_opt_shift: shift(shape.physical_block),
            io_min_shift: shift(shape.physical_block),
            max_sectors: sectors(shape.max_io),
            dev_sectors: shape.size / 512,
            ..Default::default()
        },
        discard: sys::ublk_param_discard {
            discard_granularity: shape.physical_block,
            max_discard_sectors: sectors(shape.max_discard),
            max_write_zeroes_sectors: sectors(shape.max_discard),
            max_discard_segments: 1,
            ..Default::default()
        },
        ..Default::default()
    }
}

/// Whether a device serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Serving.
    Live,
    /// Its daemon is gone; requests wait for another.
    Quiesced,
    /// Its daemon is gone; requests fail.
    Failing,
    /// Not started, or stopped.
    Dead,
}

/// What the driver says of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Whether it serves.
    pub state: State,
    /// The process that serves or served it.
    pub pid: i32,
    /// What it was added with ([`Shape::mark`]).
    pub mark: u64,
}

/// Ask for a device.
///
/// # Errors
/// Fails when there is no such device.
pub fn info(id: u32) -> Result<Info, ControlError> {
    let mut info = sys::ublksrv_ctrl_dev_info::default();
    let buffer = (std::ptr::from_mut(&mut info) as u64, size_of_val(&info) as u16);
    command(
        "asking for a device",
        sys::UBLK_U_CMD_GET_DEV_INFO,
        id,
        Some(buffer),
        QUICK,
    )?;
    let state = match u32::from(info.state) {
        sys::UBLK_S_DEV_LIVE => State::Live,
        sys::UBLK_S_DEV_QUIESCED => State::Quiesced,
        sys::UBLK_S_DEV_FAIL_IO => State::Failing,
        _ => State::Dead,
    };
    Ok(Info {
        state,
        pid: info.ublksrv_pid,
        mark: info.ublksrv_flags,
    })
}

/// Stop a device; done when it is stopped already.
///
/// # Errors
/// Fails when the driver does not answer in time, which it does not while a request in flight is not answered.
pub fn stop(id: u32) -> Result<(), ControlError> {
    command("stopping the device", sys::UBLK_U_CMD_STOP_DEV, id, None, STOPPING)
}

/// Stop a device if nobody has it open.
///
/// # Errors
/// EBUSY: somebody has. EOPNOTSUPP: the kernel cannot say ([`Features::can_stop_unused`]).
pub fn stop_unused(id: u32) -> Result<(), ControlError> {
    command("stopping the device", sys::UBLK_U_CMD_TRY_STOP_DEV, id, None, STOPPING)
}

/// Stop a device if need be, delete it, and wait until its number is free.
///
/// # Errors
/// Times out while somebody has the device open or mounted; it is then deleted as soon as nobody has.
pub fn delete(id: u32, wait: Duration) -> Result<(), ControlError> {
    match command("deleting the device", sys::UBLK_U_CMD_DEL_DEV, id, None, wait) {
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
        result => result,
    }
}

/// The driver's feature bits.
///
/// # Errors
/// Fails when there is no driver, or it does not answer.
pub fn features() -> Result<u64, ControlError> {
    let mut features = 0_u64;
    let buffer = (std::ptr::from_mut(&mut features) as u64, size_of_val(&features) as u16);
    command(
        "asking for the features",
        sys::UBLK_U_CMD_GET_FEATURES,
        u32::MAX,
        Some(buffer),
        QUICK,
    )?;
    Ok(features)
}

fn open() -> Result<File, ControlError> {
    if !Path::new(CONTROL).exists() {
        return Err(ControlError::NoDriver);
    }
    let opened = OpenOptions::new().read(true).write(true).open(CONTROL);
    opened.map_err(|source| ControlError::Refused {
        what: "opening /dev/ublk-control",
        source,
    })
}

/// One control command as one ring entry. `buffer` is the address and length of what the driver fills in.
fn command(
    what: &'static str,
    operation: u32,
    id: u32,
    buffer: Option<(u64, u16)>,
    wait: Duration,
) -> Result<(), ControlError> {
    let failed = |source| ControlError::Refused { what, source };
    let control = open()?;
    keep_workers().map_err(failed)?;
    let mut ring: IoUring<squeue::Entry128, cqueue::Entry> = IoUring::builder().build(2).map_err(failed)?;
    let (addr, len) = buffer.unwrap_or_default();
    let command = sys::ublksrv_ctrl_cmd {
        dev_id: id,
        queue_id: u16::MAX,
        addr,
        len,
        ..Default::default()
    };
    let mut bytes = [0; 80];
    // SAFETY: a plain structure of integers without padding, of 32 bytes, copied as bytes.
    let command: [u8; size_of::<sys::ublksrv_ctrl_cmd>()] = unsafe { std::mem::transmute(command) };
    bytes[..command.len()].copy_from_slice(&command);
    let entry = opcode::UringCmd80::new(types::Fd(control.as_raw_fd()), operation)
        .cmd(bytes)
        .build();
    // SAFETY: the descriptor stays open until the entry has ended or the ring is closed; the driver writes to `buffer`
    // only while it carries the command out, which for those commands is before they can be interrupted.
    unsafe { ring.submission().push(&entry) }.expect("the ring is empty");
    let until = Instant::now() + wait;
    loop {
        let left = types::Timespec::from(until.saturating_duration_since(Instant::now()));
        let waited = ring
            .submitter()
            .submit_with_args(1, &types::SubmitArgs::new().timespec(&left));
        if let Some(done) = ring.completion().next() {
            return answered(what, done.result());
        }
        match waited {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::ETIME)) => {
                return Err(failed(error));
            }
            // What was submitted is told before that the time is over.
            Ok(_) | Err(_) if Instant::now() >= until => return Err(ControlError::TimedOut { what, waited: wait }),
            Ok(_) | Err(_) => {}
        }
    }
}

/// Keep a ring of this thread open for as long as the thread lives.
///
/// The driver's commands are carried out by a kernel worker of the thread that submits them. When a thread closes its last
/// ring, 7.2 has its idle workers end; a command that a new ring submits just then is handed to a worker that is about to
/// end, and is never carried out (seen with a delete right behind a stop: no worker, no completion). A thread that always
/// has a ring keeps its workers.
fn keep_workers() -> io::Result<()> {
    thread_local!(static KEPT: OnceCell<IoUring> = const { OnceCell::new() });
    KEPT.with(|kept| {
        if kept.get().is_none() {
            let _ = kept.set(IoUring::new(1)?);
        }
        Ok(())
    })
}

fn answered(what: &'static str, result: i32) -> Result<(), ControlError> {
    // libublk passes -EBUSY on as a success.
    if result >= 0 {
        Ok(())
    } else {
        Err(ControlError::refused(what, result))
    }
}

/// libublk's control ring belongs to a thread.
fn with_ring(what: &'static str) -> Result<(), ControlError> {
    libublk::ublk_init_ctrl_task_ring(|ring| {
        *ring = Some(IoUring::builder().build(4)?);
        Ok(())
    })
    .map_err(|error| ControlError::from_libublk(what, error))
}

/// Carry `work` out on another thread, which is left to itself when it takes longer than `wait`.
fn bounded<T: Send + 'static>(
    what: &'static str,
    wait: Duration,
    work: impl FnOnce(&'static str) -> Result<T, ControlError> + Send + 'static,
) -> Result<T, ControlError> {
    let (sender, receiver) = sync_channel(1);
    std::thread::Builder::new()
        .name("control".into())
        .stack_size(256 << 10)
        .spawn(move || {
            // Nobody waits any more: what was added or started is for the next start to find.
            let _ = sender.send(work(what));
        })
        .map_err(|source| ControlError::Refused { what, source })?;
    match receiver.recv_timeout(wait) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(ControlError::TimedOut { what, waited: wait }),
        Err(RecvTimeoutError::Disconnected) => Err(ControlError::Refused {
            what,
            source: io::Error::other("libublk panicked"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        id: None,
        depth: 64,
        max_io: 128 << 10,
        size: (1 << 30) + 512,
        logical_block: 512,
        physical_block: 4096,
        max_discard: 8 << 20,
        mark: 1,
    };

    #[test]
    fn parameters_ask_for_flushes_and_bound_discards() {
        let parameters = parameters(&SHAPE);
        assert_eq!(
            parameters.basic.attrs,
            sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA
        );
        assert_eq!(
            (parameters.basic.logical_bs_shift, parameters.basic.physical_bs_shift),
            (9, 12)
        );
        assert_eq!(parameters.basic.dev_sectors, (1 << 21) + 1);
        assert_eq!(parameters.basic.max_sectors, 256);
        assert_ne!(parameters.discard.discard_granularity, 0);
        assert_eq!(parameters.discard.max_discard_segments, 1);
        assert_eq!(parameters.discard.max_discard_sectors, 16384);
    }

    #[test]
    fn a_driver_that_hangs_is_given_up() {
        let (keep, wait) = sync_channel::<()>(0);
        let result = bounded("hanging", Duration::from_millis(1), move |_| {
            let _ = wait.recv();
            Ok(())
        });
        assert!(matches!(result, Err(ControlError::TimedOut { .. })), "{result:?}");
        drop(keep);
    }

    #[test]
    fn busy_is_an_error() {
        assert_eq!(answered("x", -libc::EBUSY).unwrap_err().errno(), Some(libc::EBUSY));
    }
}
