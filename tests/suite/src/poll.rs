//! Waiting for something to become true, with a bound.

use std::fmt::Debug;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Time between two looks: short against all that is waited for, long against the cost of a look.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Looks until `look` gives a value; fails after `limit` with what the last look said.
pub fn until<T>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let begin = Instant::now();
    loop {
        let last = match look() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => "not yet".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        if begin.elapsed() > limit {
            bail!("waited {limit:?} for {what}; the last look said: {last}");
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Looks until `look` gives `expected`.
pub fn until_equal<T: PartialEq + Debug>(
    limit: Duration,
    what: &str,
    expected: &T,
    mut look: impl FnMut() -> Result<T>,
) -> Result<()> {
    until(limit, what, || {
        let seen = look()?;
        if seen == *expected {
            return Ok(Some(()));
        }
        bail!("{seen:?} is not {expected:?}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_with_the_last_reason() {
        let mut looks = 0;
        let error = until(Duration::ZERO, "rain", || {
            looks += 1;
            bail!("look {looks}: dry") as Result<Option<()>>
        })
        .expect_err("it never rains");
        assert!(
            error
                .to_string()
                .ends_with("for rain; the last look said: look 1: dry")
        );
    }

    #[test]
    fn it_gives_what_it_found() {
        let mut looks = 0;
        let found = until(Duration::from_secs(5), "the third look", || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(found.expect("it comes"), 3);
    }
}
