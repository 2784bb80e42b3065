//! Situations that the seeds must reach, each at least once: what is never met is not tested.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A situation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Point {
    LeaderKilled,
    LeaderPaused,
    LeaderStopped,
    LeaderSuspected,
    PeerAnswerLost,
    PeerUnreachable,
    PeerSilent,
    KafkaCutOff,
    ProducerGivenUp,
    SuffixLostInElection,
    RecordIgnored,
    RecordOfAnotherProgram,
    LogTrimmed,
    LeaderMovedAway,
    ReplicaRemoved,
    CommitTakenBack,
    CommitAnswerLost,
    DiskFull,
    PostgresAway,
    RestartFromOlderPosition,
    HandedOver,
    SeveralEpochs,
    WriteRefused,
    WriteUnknown,
    UnknownWriteStands,
    UnknownWriteDoesNot,
    ClientGaveUp,
    ReadFoundNothing,
    SchemaLost,
    TrimmedPastAReplica,
    SlotRestored,
    SnapshotBrokenOff,
    RestoredFromTwoCuts,
}

use Point as P;

pub(crate) const ALL: [Point; 33] = [
    P::LeaderKilled,
    P::LeaderPaused,
    P::LeaderStopped,
    P::LeaderSuspected,
    P::PeerAnswerLost,
    P::PeerUnreachable,
    P::PeerSilent,
    P::KafkaCutOff,
    P::ProducerGivenUp,
    P::SuffixLostInElection,
    P::RecordIgnored,
    P::RecordOfAnotherProgram,
    P::LogTrimmed,
    P::LeaderMovedAway,
    P::ReplicaRemoved,
    P::CommitTakenBack,
    P::CommitAnswerLost,
    P::DiskFull,
    P::PostgresAway,
    P::RestartFromOlderPosition,
    P::HandedOver,
    P::SeveralEpochs,
    P::WriteRefused,
    P::WriteUnknown,
    P::UnknownWriteStands,
    P::UnknownWriteDoesNot,
    P::ClientGaveUp,
    P::ReadFoundNothing,
    P::SchemaLost,
    P::TrimmedPastAReplica,
    P::SlotRestored,
    P::SnapshotBrokenOff,
    P::RestoredFromTwoCuts,
];

/// How often each was met; clones count together.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<BTreeMap<Point, u64>>>);

impl Seen {
    pub(crate) fn reach(&self, point: Point) {
        self.reach_times(point, 1);
    }

    pub(crate) fn reach_times(&self, point: Point, times: u64) {
        if times > 0 {
            let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *counts.entry(point).or_default() += times;
        }
    }

    pub(crate) fn counts(&self) -> BTreeMap<Point, u64> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.clone()
    }
}
