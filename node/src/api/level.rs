//! How fresh a read has to be, as requests say it, and tokens: what a client has seen, to be shown at its next read.
//!
//! | `Kvcluster-Consistency` | answered by | sees at least |
//! |---|---|---|
//! | `linearizable` (default) | the slot's leader | every write that was acknowledged before |
//! | `token` | any replica, as soon as it has come so far | what `Kvcluster-Token` stands for |
//! | `bounded` | any replica that is sure to be so fresh, else the leader | every write that was acknowledged longer ago than `Kvcluster-Max-Staleness-Ms` |
//! | `any` | any replica | something of the past; also while the slot has no leader |

use std::fmt;
use std::str::FromStr;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use kvcluster_crds::{LogId, Offset, SlotId};

use crate::api::problem::{ErrorCode, Problem};

const CONSISTENCY: HeaderName = HeaderName::from_static("kvcluster-consistency");
const TOKEN: HeaderName = HeaderName::from_static("kvcluster-token");
const MAX_STALENESS: HeaderName = HeaderName::from_static("kvcluster-max-staleness-ms");
/// How old a bounded read may be when its request does not say, milliseconds: several heartbeats.
const MAX_STALENESS_DEFAULT_MS: u64 = 1_000;
/// The oldest that may be asked for, milliseconds.
const MAX_STALENESS_MS: u64 = 3_600_000;

/// How fresh a read has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Linearizable,
    Token(Offset),
    Bounded { within_ms: u64 },
    Any,
}

/// A record of a slot's log: `<log id>/<slot>:<offset>`. What is read with it is not older than this record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) log_id: LogId,
    pub(super) slot: SlotId,
    pub(super) offset: Offset,
}

impl Level {
    /// Of a request for a key of `slot`, in the log `log_id`.
    pub(super) fn of(headers: &HeaderMap, log_id: LogId, slot: SlotId) -> Result<Self, Problem> {
        let token = headers.get(TOKEN).map(parse_token).transpose()?;
        if let Some(token) = token.filter(|token| (token.log_id, token.slot) != (log_id, slot)) {
            let detail = format!(
                "{TOKEN}: {token} is of slot {} of log {}; the key is in slot {slot} of log {log_id}",
                token.slot, token.log_id
            );
            return Err(Problem::new(ErrorCode::BadRequest, detail));
        }
        let by_token = token.map(|token| Self::Token(token.offset));
        match headers.get(CONSISTENCY).map(HeaderValue::as_bytes) {
            None => Ok(by_token.unwrap_or(Self::Linearizable)),
            Some(b"linearizable") => Ok(Self::Linearizable),
            Some(b"any") => Ok(Self::Any),
            Some(b"bounded") => {
                let within_ms = max_staleness(headers.get(MAX_STALENESS))?;
                Ok(Self::Bounded { within_ms })
            }
            Some(b"token") => by_token.ok_or_else(|| {
                let detail = format!("{CONSISTENCY}: token needs {TOKEN} with what was seen");
                Problem::new(ErrorCode::BadRequest, detail)
            }),
            Some(other) => {
                let detail = format!(
                    "{CONSISTENCY}: \"{}\" is none of linearizable, token, bounded, any",
                    other.escape_ascii()
                );
                Err(Problem::new(ErrorCode::BadRequest, detail))
            }
        }
    }
}

impl Token {
    /// The header of an answer.
    pub(super) fn header(self) -> (HeaderName, HeaderValue) {
        let text = self.to_string();
        (
            TOKEN,
            HeaderValue::from_str(&text).expect("digits and two signs"),
        )
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            log_id,
            slot,
            offset,
        } = self;
        write!(f, "{log_id}/{slot}:{offset}")
    }
}

fn max_staleness(value: Option<&HeaderValue>) -> Result<u64, Problem> {
    let Some(value) = value else {
        return Ok(MAX_STALENESS_DEFAULT_MS);
    };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    let number = number.filter(|number| (1..=MAX_STALENESS_MS).contains(number));
    number.ok_or_else(|| {
        let shown = value.as_bytes().escape_ascii();
        let detail = format!(
            "{MAX_STALENESS}: \"{shown}\" is no number of milliseconds from 1 to {MAX_STALENESS_MS}"
        );
        Problem::new(ErrorCode::BadRequest, detail)
    })
}

fn parse_token(value: &HeaderValue) -> Result<Token, Problem> {
    let parse = || {
        let (log_id, place) = value.to_str().ok()?.split_once('/')?;
        let (slot, offset) = place.split_once(':')?;
        let offset = i64::from_str(offset).ok().filter(|offset| *offset >= 0)?;
        Some(Token {
            log_id: log_id.parse().ok()?,
            slot: SlotId(slot.parse().ok()?),
            offset: Offset(offset),
        })
    };
    parse().ok_or_else(|| {
        let shown = value.as_bytes().escape_ascii();
        let detail = format!(
            "{TOKEN}: \"{shown}\" is no token; send one as an answer gave it: <log id>/<slot>:<offset>"
        );
        Problem::new(ErrorCode::BadRequest, detail)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(pairs: &[(&'static str, &str)]) -> Result<Level, String> {
        let headers = pairs.iter().map(|(name, value)| {
            let value = HeaderValue::from_str(value).expect("a header");
            (HeaderName::from_static(name), value)
        });
        let level = Level::of(&headers.collect(), LogId(10), SlotId(3));
        level.map_err(|problem| problem.detail)
    }

    #[test]
    fn a_request_names_its_level() {
        let token = ("kvcluster-token", "000000000000000a/3:12");
        let consistency = |value| ("kvcluster-consistency", value);
        assert_eq!(level(&[]), Ok(Level::Linearizable));
        assert_eq!(level(&[consistency("any")]), Ok(Level::Any));
        assert_eq!(level(&[token]), Ok(Level::Token(Offset(12))));
        assert_eq!(
            level(&[consistency("token"), token]),
            Ok(Level::Token(Offset(12)))
        );
        assert_eq!(
            level(&[consistency("linearizable"), token]),
            Ok(Level::Linearizable)
        );
        let bounded = |within_ms| Ok(Level::Bounded { within_ms });
        assert_eq!(level(&[consistency("bounded")]), bounded(1_000));
        for (text, within_ms) in [("1", 1), ("3600000", 3_600_000)] {
            let staleness = ("kvcluster-max-staleness-ms", text);
            assert_eq!(
                level(&[consistency("bounded"), staleness]),
                bounded(within_ms)
            );
        }
        let refused = |pairs: &[_]| level(pairs).expect_err("it is refused");
        assert!(refused(&[consistency("token")]).contains("needs kvcluster-token"));
        assert!(refused(&[consistency("strong")]).contains("\"strong\""));
        for text in ["0", "3600001", "-1", "1.5", "", "1 s"] {
            let staleness = ("kvcluster-max-staleness-ms", text);
            let detail = refused(&[consistency("bounded"), staleness]);
            assert!(detail.contains("from 1 to 3600000"), "{detail}");
        }
    }

    #[test]
    fn a_token_is_of_this_log_and_slot() {
        let refused = |token| level(&[("kvcluster-token", token)]).expect_err("it is refused");
        assert!(refused("000000000000000b/3:12").contains("of log 000000000000000b"));
        assert!(refused("000000000000000a/4:12").contains("slot 4"));
        for malformed in [
            "",
            "x",
            "000000000000000a/3",
            "000000000000000a/3:-1",
            "a/3:1:2",
            "000000000000000a/-3:1",
        ] {
            assert!(refused(malformed).contains("is no token"), "{malformed}");
        }
    }

    #[test]
    fn a_token_comes_back_as_it_went() {
        let token = Token {
            log_id: LogId(u64::MAX),
            slot: SlotId(1_023),
            offset: Offset(i64::MAX),
        };
        assert_eq!(
            parse_token(&token.header().1).map_err(|problem| problem.detail),
            Ok(token)
        );
    }
}
