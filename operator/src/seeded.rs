//! Deliberate mistakes, at most one at a time: each is one that an operator somewhere has made, and a named test must then fail.
//! They show that the tests can see. Without the feature `seeded-bugs` nothing of this is in the program: [`on`] is a constant,
//! and [`MARK`] is not among the program's bytes.

/// One guard that can be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Objects are deleted by name, whoever stands there by now.
    UidUnchecked,
    /// Who is left over is told by the number of nodes that are wanted, and not by the published members.
    SweepsByNumber,
    /// Secrets are written before the first assignment alone.
    SecretsAtFirstOnly,
    /// A role that exists is taken for finished, whatever its password.
    LoginUntested,
    /// A member goes while it holds replicas.
    LeavesBeforeEmpty,
    /// A replica is given up without proof that others have everything.
    ReleasesUnproven,
    /// Nobody is restarted for a new template.
    RestartsNobody,
    /// A field that is not wanted any more stays.
    DroppedFieldsStay,
    /// A broken node waits for its new template until all is well.
    BrokenWait,
    /// A pod's place in a list is taken for its node.
    OrderAssumed,
    /// Objects of all namespaces are looked at.
    NamespaceUnchecked,
    /// A cluster that is being deleted is worked on like any other.
    WorksOnDeleted,
    /// The finalizer goes before what it stands for.
    FinalizerFirst,
    /// The finalizer never goes while something is left.
    FinalizerNever,
    /// `Ready` does not wait for the nodes.
    ReadyUnserved,
    /// The disruption budget depends on which pods are ready.
    BudgetFollowsPods,
    /// An object of the right name is ours, whoever owns it.
    OwnerUnchecked,
    /// A log that is gone is made anew.
    LostLogMadeAnew,
    /// What the API server adds is taken for a change.
    DefaultsAreChanges,
    /// The status is written over what somebody else wrote meanwhile.
    StatusOverwrites,
    /// A finalizer is taken for the wish to remove everything.
    FinalizerMeansDelete,
    /// What was prepared for a node that is called off stays.
    PreparedStays,
}

/// Bytes that a program with seeded bugs contains, and no other.
pub const MARK: &str = "this operator can be made to do harm";

/// Whether a guard is taken away: never, in this build.
#[cfg(not(feature = "seeded-bugs"))]
#[inline]
pub const fn on(_: Bug) -> bool {
    false
}

#[cfg(feature = "seeded-bugs")]
pub use switch::{on, set};

#[cfg(feature = "seeded-bugs")]
mod switch {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static ACTIVE: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Whether a guard is taken away.
    pub fn on(bug: Bug) -> bool {
        ACTIVE.get() == Some(bug)
    }

    /// Takes one guard away, for this thread, and gives the others back.
    pub fn set(bug: Option<Bug>) {
        if bug.is_some() {
            eprintln!("{}: {bug:?}", super::MARK);
        }
        ACTIVE.set(bug);
    }
}

#[cfg(all(test, feature = "seeded-bugs"))]
mod tests;
