//! The clock of leases and elections: monotonic, and it also counts while the machine is suspended. An argument, so that
//! whole nodes can be run on a time of somebody else's.

use std::sync::Arc;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// A clock; clones show the same.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Clock {
    /// The machine's own: `CLOCK_BOOTTIME`.
    pub fn boottime() -> Self {
        Self::new(|| {
            let time = clock_gettime(ClockId::Boottime);
            let part =
                |number: i64| u64::try_from(number).expect("the time since boot is not negative");
            part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
        })
    }

    /// One that shows what `now_ns` says: nanoseconds that never go back.
    pub fn new(now_ns: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now_ns))
    }

    /// Nanoseconds.
    pub fn now_ns(&self) -> u64 {
        (self.0)()
    }

    /// The moment of `deadline` on this clock.
    pub fn at_ns(&self, deadline: Instant) -> u64 {
        let left = deadline.saturating_duration_since(Instant::now());
        self.now_ns()
            .saturating_add(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX))
    }
}
