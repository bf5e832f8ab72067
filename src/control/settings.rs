//! What can be changed on a running device.

use crate::core::Protocol;
use crate::table;
use serde::{Deserialize, Serialize};

/// One change: `{"key":"protocol","value":"sync"}`. Numbers are plain JSON numbers in the unit given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "key", content = "value", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Setting {
    /// `"protocol"`: `"sync"`, `"flush"` or `"async"`; durable before anything is acknowledged under it.
    Protocol(Protocol),
    /// `"stall-budget"`, in milliseconds: the age of the oldest guest request that waits for the secondary alone, at
    /// which the secondary is behind.
    StallBudget(u64),
    /// `"leg-timeout"`, in seconds: the age of the oldest operation on the secondary at which it is behind.
    LegTimeout(u64),
    /// `"pool-bytes"`: payloads that may wait for the secondary.
    PoolBytes(u64),
    /// `"lag-bytes"`: how far a secondary may lag; 0: the pool decides.
    LagBytes(u64),
    /// `"quiet"`, in seconds: how long an extent must not have been written before it is hashed.
    Quiet(u64),
    /// `"catch-up"`: `"auto"` or `"manual"`.
    CatchUp(CatchUp),
}

/// Whether a leg that is behind catches up by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CatchUp {
    /// `"auto"`: by itself.
    Auto,
    /// `"manual"`: on `attach` only.
    Manual,
}

/// The settings in force; names and units as in [`Setting`]. The protocol is a field of the status itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Milliseconds.
    pub stall_budget_ms: u64,
    /// Seconds.
    pub leg_timeout_s: u64,
    /// Bytes.
    pub pool_bytes: u64,
    /// Bytes; 0: the pool decides.
    pub lag_bytes: u64,
    /// Seconds.
    pub quiet_s: u64,
    /// Whether a leg that is behind catches up by itself.
    pub catch_up: CatchUp,
}

impl From<&table::Settings> for Settings {
    fn from(recorded: &table::Settings) -> Settings {
        Settings {
            stall_budget_ms: recorded.stall_budget_ms,
            leg_timeout_s: recorded.leg_timeout_ms.div_ceil(1000),
            pool_bytes: recorded.pool_bytes,
            lag_bytes: recorded.lag_bytes,
            quiet_s: recorded.quiet_ms.div_ceil(1000),
            catch_up: if recorded.catch_up {
                CatchUp::Auto
            } else {
                CatchUp::Manual
            },
        }
    }
}
