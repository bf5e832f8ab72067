//! What the driver can do.

use super::ControlError;
use super::control;
use libublk::sys;

/// The names of the feature bits known here, in the driver's order.
const NAMES: [(u32, &str); 20] = [
    (sys::UBLK_F_SUPPORT_ZERO_COPY, "zero-copy"),
    (sys::UBLK_F_URING_CMD_COMP_IN_TASK, "comp-in-task"),
    (sys::UBLK_F_NEED_GET_DATA, "get-data"),
    (sys::UBLK_F_USER_RECOVERY, "user-recovery"),
    (sys::UBLK_F_USER_RECOVERY_REISSUE, "user-recovery-reissue"),
    (sys::UBLK_F_UNPRIVILEGED_DEV, "unprivileged"),
    (sys::UBLK_F_CMD_IOCTL_ENCODE, "ioctl-encode"),
    (sys::UBLK_F_USER_COPY, "user-copy"),
    (sys::UBLK_F_ZONED, "zoned"),
    (sys::UBLK_F_USER_RECOVERY_FAIL_IO, "user-recovery-fail-io"),
    (sys::UBLK_F_UPDATE_SIZE, "update-size"),
    (sys::UBLK_F_AUTO_BUF_REG, "auto-buffer-registration"),
    (sys::UBLK_F_QUIESCE, "quiesce"),
    (sys::UBLK_F_PER_IO_DAEMON, "per-io-daemon"),
    (sys::UBLK_F_BUF_REG_OFF_DAEMON, "buffer-registration-off-daemon"),
    (sys::UBLK_F_BATCH_IO, "batch-io"),
    (sys::UBLK_F_INTEGRITY, "integrity"),
    (sys::UBLK_F_SAFE_STOP_DEV, "safe-stop"),
    (sys::UBLK_F_NO_AUTO_PART_SCAN, "no-partition-scan"),
    (sys::UBLK_F_SHMEM_ZC, "shared-memory-zero-copy"),
];

/// What every device of ours is added with.
pub const NEEDED: u64 =
    (sys::UBLK_F_USER_RECOVERY | sys::UBLK_F_USER_RECOVERY_REISSUE | sys::UBLK_F_CMD_IOCTL_ENCODE) as u64;

/// The driver's feature bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// Ask the driver.
    ///
    /// # Errors
    /// Fails when there is no driver or it does not answer.
    pub fn of_driver() -> Result<Features, ControlError> {
        control::features().map(Features)
    }

    /// The names of those that are known.
    pub fn names(self) -> Vec<&'static str> {
        NAMES
            .iter()
            .filter(|(bit, _)| self.0 & u64::from(*bit) != 0)
            .map(|(_, name)| *name)
            .collect()
    }

    /// Whether a device can be stopped only if nobody has it open.
    pub fn can_stop_unused(self) -> bool {
        self.0 & u64::from(sys::UBLK_F_SAFE_STOP_DEV) != 0
    }

    /// Whether all that we need is there.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn check(self) -> Result<(), ControlError> {
        let missing = Features(NEEDED & !self.0);
        match missing.0 {
            0 => Ok(()),
            _ => Err(ControlError::Lacks {
                missing: missing.names().join(", "),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(Features(0b1000).names(), ["user-recovery"]);
        assert!(Features(u64::MAX).check().is_ok());
        let error = Features(NEEDED & !0b1000).check().unwrap_err().to_string();
        assert!(error.ends_with("lacks user-recovery"), "{error}");
    }
}
