//! What is known of one partition that is read, and what its ends say. Pure: time is an argument.

use std::time::{Duration, Instant};

use kvcluster_crds::Offset;

use crate::log::{Follow, Sink};
use crate::slot::Behind;

/// A partition that has records and gives none for so long is begun anew. librdkafka 2.12 was seen to read one partition of
/// several no more after its broker was killed and came back, without an error.
const STALLED_AFTER: Duration = Duration::from_secs(1);

pub(super) struct Followed {
    /// Offset of the next record to read.
    pub(super) place: i64,
    pub(super) sink: Sink,
    /// When it gave something, or was begun anew.
    pub(super) heard: Instant,
    /// Since when it is known to have records that it does not give.
    behind_since: Option<Instant>,
    /// Its end when it was begun anew: if nothing comes before the next end, there are no records up to there.
    pub(super) end_at_anew: Option<i64>,
}

impl Followed {
    pub(super) fn new(place: i64, sink: Sink) -> Self {
        Self {
            place,
            sink,
            heard: Instant::now(),
            behind_since: None,
            end_at_anew: None,
        }
    }

    pub(super) fn gave(&mut self, place: i64) {
        self.place = self.place.max(place);
        self.heard = Instant::now();
        self.behind_since = None;
        self.end_at_anew = None;
    }

    /// Whether a partition that ends at `end`, and gave nothing for a while, is to be begun anew.
    pub(super) fn has_stalled(&mut self, end: i64, now: Instant) -> bool {
        if end <= self.place {
            self.behind_since = None;
            return false;
        }
        let since = *self.behind_since.get_or_insert(now);
        now.duration_since(since) >= STALLED_AFTER
    }
}

/// How a place and a partition fit together.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    Fits,
    /// Only a snapshot helps, or it helps more.
    Behind(Behind),
    /// The log ends before the place: perhaps not for good.
    TooShort(String),
}

impl Look {
    pub(super) fn compare(follow: &Follow, start: i64, end: i64) -> Self {
        const REMEDY: &str =
            "restore the topic, or remove this node's schema and rebuild it from a peer";
        let &Follow {
            from,
            next,
            records_max,
            ..
        } = follow;
        if from.0 < start {
            return Self::Behind(Behind {
                reason: format!(
                    "the log begins at record {start}, and record {from} is needed: it was trimmed; waiting for a snapshot \
                     of another replica"
                ),
                // The record before the snapshot is compared with the one that stands there.
                least: Offset(start).next(),
                can_replay: false,
            });
        }
        if end < next.0 {
            return Self::TooShort(format!(
                "the log ends at record {end}, and {next} were applied: the topic was emptied or replaced; {REMEDY}"
            ));
        }
        let ahead = end - next.0;
        if ahead > records_max {
            return Self::Behind(Behind {
                reason: format!(
                    "{ahead} records are to be read, more than {records_max}: asking for a snapshot of another replica"
                ),
                least: Offset(next.0 + records_max),
                can_replay: true,
            });
        }
        Self::Fits
    }
}

#[cfg(test)]
mod tests {
    use kvcluster_crds::SlotId;
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn a_partition_that_does_not_give_what_it_has_is_begun_anew() {
        let (records, _records) = mpsc::channel(1);
        let (fates, _fates) = mpsc::unbounded_channel();
        let mut followed = Followed::new(5, Sink { records, fates });
        let now = Instant::now();
        let later = now + STALLED_AFTER;
        assert!(
            !followed.has_stalled(5, now) && !followed.has_stalled(5, later),
            "at its end"
        );
        assert!(
            !followed.has_stalled(6, now),
            "the record may be on its way"
        );
        assert!(followed.has_stalled(6, later));
        followed.gave(6);
        assert!(!followed.has_stalled(7, later), "it gave something since");
        // A marker without a record: the end comes, and nothing before it.
        followed.end_at_anew = Some(8);
        followed.gave(followed.end_at_anew.unwrap_or_default());
        assert!(!followed.has_stalled(8, later) && followed.behind_since.is_none());
    }

    #[test]
    fn places_that_the_log_does_not_hold_are_seen() {
        let look = |from, next, start, end| {
            let (records, _records) = mpsc::channel(1);
            let (fates, _fates) = mpsc::unbounded_channel();
            let follow = Follow {
                slot: SlotId(0),
                from: Offset(from),
                next: Offset(next),
                records_max: 10,
                sink: Sink { records, fates },
            };
            Look::compare(&follow, start, end)
        };
        let least = |look| match look {
            Look::Behind(behind) => Some((behind.least.0, behind.can_replay)),
            Look::Fits | Look::TooShort(_) => None,
        };
        assert_eq!(look(0, 0, 0, 0), Look::Fits, "a new log");
        assert_eq!(
            look(4, 5, 4, 5),
            Look::Fits,
            "the record before is the first that is left"
        );
        assert_eq!(
            least(look(4, 5, 5, 9)),
            Some((6, false)),
            "the record before was trimmed"
        );
        assert_eq!(
            least(look(0, 0, 1, 9)),
            Some((2, false)),
            "a new replica of an old log"
        );
        assert_eq!(
            look(4, 5, 0, 15),
            Look::Fits,
            "as many as are worth reading"
        );
        assert_eq!(
            least(look(4, 5, 0, 16)),
            Some((15, true)),
            "a snapshot must spare something"
        );
        assert!(
            matches!(look(4, 5, 0, 4), Look::TooShort(_)),
            "the topic was made anew"
        );
        assert!(matches!(look(4, 5, 0, 0), Look::TooShort(_)));
    }
}
