//! Old assignments go: each step of a move is a record, and every pass and every node that starts reads them all.
//!
//! That takes nothing from anybody. A reader needs the offset and the version of the newest assignment that counted, to judge the
//! next record, and nothing of those before it; the first record that it finds it takes for one that counts. So the topic is cut at an
//! assignment that counted, and nowhere else:
//!
//! ```text
//!   1 ─▶ 2 ─▶ …  33 ─▶ 34 ─▶ …  49 ─▶ 50        followed by all that answer: 49
//!   └─ removed ─┘ └── kept ──────────┘          a reader begins at 33, takes it, and folds on to 50
//! ```
//!
//! * A node that starts, or reads anew, begins at the first that is left and follows the last one, as ever.
//! * A node that is further behind than the cut finds its place gone, which its client reports as an error (`auto.offset.reset` is
//!   `error`), and reads anew. It acts only on what it knows at the end of the topic, so it misses nothing; it never goes back to an
//!   older version. That the nodes that answer follow what is cut off is only to spare them this.
//! * An operator that lost its lease may still cut: at a record that counted when it looked, which is never above the newest. One
//!   that publishes late builds on a record that is not the newest; whoever has read the newest refuses it, and everybody has who has
//!   read from the cut on, since nothing between cut and end is missing.
//!
//! `tests/sim/tests/model/assignments.rs` explores every order of this, with a cut directly below the newest assignment that any
//! operator knows.

use kvcluster_crds::Offset;

use super::{Stage, Step};
use crate::observe::World;

/// Assignments that stay below the newest that is followed: for people who look for what happened.
const KEPT: usize = 16;
/// So many go at a time, so that not every assignment costs another request.
const TRIMMED_MIN: usize = 48;

pub(super) fn stage(world: &World) -> Stage {
    let steps = cut(world).map(|first| Step::TrimAssignments { first });
    Stage {
        steps: steps.into_iter().collect(),
        refused: None,
    }
}

/// Where the topic is to begin.
fn cut(world: &World) -> Option<Offset> {
    let view = &world.kafka.as_ref().ok()?.assignment;
    let answers = world
        .nodes
        .values()
        .filter_map(|answer| answer.as_ref().ok());
    let followed = answers.map(|status| status.assignment_version.unwrap_or_default());
    let followed = followed.min()?;
    let old = view
        .counted
        .iter()
        .take_while(|(_, version)| *version <= followed);
    let place = old.count().checked_sub(KEPT)?;
    let (first, _) = *view.counted.get(place)?;
    (place >= TRIMMED_MIN).then_some(first)
}
