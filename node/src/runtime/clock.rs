//! The clocks. Leases and elections have one that is monotonic and also counts while the machine is suspended; the wall clock
//! only dates things.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// Nanoseconds of `CLOCK_BOOTTIME`.
pub fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let part = |number: i64| u64::try_from(number).expect("the time since boot is not negative");
    part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
}

/// The moment of `deadline` on this clock.
pub fn at_ns(deadline: Instant) -> u64 {
    let left = deadline.saturating_duration_since(Instant::now());
    now_ns().saturating_add(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX))
}

/// The wall clock, milliseconds since 1970. It may jump.
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| {
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
    })
}
