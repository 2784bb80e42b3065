//! The clocks. Leases and elections have one that is monotonic and also counts while the machine is suspended; the wall clock
//! only dates things. An argument, so that whole nodes can be run on a time of somebody else's.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// A clock; clones show the same.
#[derive(Clone)]
pub struct Clock {
    now_ns: Arc<dyn Fn() -> u64 + Send + Sync>,
    wall_ms: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl Clock {
    /// The machine's own: `CLOCK_BOOTTIME`, and its wall clock.
    pub fn of_machine() -> Self {
        let now_ns = || {
            let time = clock_gettime(ClockId::Boottime);
            let part =
                |number: i64| u64::try_from(number).expect("the time since boot is not negative");
            part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
        };
        let wall_ms = || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            since.map_or(0, |time| {
                u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
            })
        };
        Self::new(now_ns, wall_ms)
    }

    /// One that shows what `now_ns` says, nanoseconds that never go back, and `wall_ms`, milliseconds since 1970, which may
    /// jump.
    pub fn new(
        now_ns: impl Fn() -> u64 + Send + Sync + 'static,
        wall_ms: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Self {
        Self {
            now_ns: Arc::new(now_ns),
            wall_ms: Arc::new(wall_ms),
        }
    }

    /// Nanoseconds.
    pub fn now_ns(&self) -> u64 {
        (self.now_ns)()
    }

    /// The wall clock, milliseconds since 1970. It may jump: it only dates things.
    pub fn wall_ms(&self) -> u64 {
        (self.wall_ms)()
    }

    /// The moment of `deadline` on this clock.
    pub fn at_ns(&self, deadline: Instant) -> u64 {
        let left = deadline.saturating_duration_since(Instant::now());
        self.now_ns()
            .saturating_add(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX))
    }
}
