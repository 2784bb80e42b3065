//! Finds who serves a slot, asks there, and looks again when nothing happened there, until the deadline.
//!
//! ```text
//!            ┌─ Here ───▶ slot, store ──┐            ┌─▶ answer
//!  place ────┼─ Node ───▶ its /internal ┼─▶ outcome ─┼─▶ final problem
//!    ▲       └─ Nobody ─────────────────┘            └─▶ nothing happened ──▶ wait for another place ──┐
//!    └────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//! A write is tried again only when it certainly took no effect, or when its idempotency key lets the leader know it again; a
//! read whenever it got no answer.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use bytes::Bytes;
use kvcluster_crds::slot::slot_of_key;
use kvcluster_crds::{Offset, SlotId};
use tokio::time::Instant;

use crate::api::Shared;
use crate::api::idempotency::IdempotencyKey;
use crate::api::internal;
use crate::api::level::{Level, Token};
use crate::api::problem::{ErrorCode, Problem};
use crate::effect::{Effect, VALUE_BYTES_MAX, Versioned};
use crate::metrics::ForwardLabels;
use crate::peer::{PeerError, Peers};
use crate::service::Place;

/// Longest time of a request, seconds; a client cannot extend it.
pub const REQUEST_SECONDS: u64 = 10;
/// Pause before the same place is asked again, milliseconds: it said that it does not lead, and the news of who does is on its
/// way.
const LOOK_AGAIN_MS: u64 = 20;
/// How long an answer to a write is waited for after the slot has got another leader, milliseconds: time for the old one to
/// learn what became of it.
const AFTER_CHANGE_MS: u64 = 2_000;
/// How long this node's replica may take to come as far as a token, milliseconds; then the leader is asked, who is as far.
const TOKEN_WAIT_MS: u64 = 500;
/// Longest answer of another node besides a value, bytes.
const ANSWER_BYTES_MAX: usize = VALUE_BYTES_MAX + 65_536;

/// Why one attempt gave no answer.
pub(super) enum Failure {
    /// Nothing happened and another attempt may go well.
    Nothing(Problem),
    /// To be answered as it is.
    Final(Problem),
}

impl Shared {
    /// The slot of a key.
    pub(super) fn slot(&self, key: &[u8]) -> SlotId {
        slot_of_key(key, self.slots.count())
    }

    /// The deadline of a request that begins now.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.request_time
    }

    /// Writes one effect at the leader of its slot.
    pub(super) async fn write(
        &self,
        effect: Effect,
        key: Option<&IdempotencyKey>,
        deadline: Instant,
    ) -> Result<Offset, Problem> {
        let slot = self.slot(effect.key());
        let mut unknown = None;
        loop {
            let place = self.slots.place(slot);
            let attempt = match &place {
                Place::Here => self.write_here(slot, effect.clone(), key, deadline).await,
                Place::Node { address, .. } => {
                    self.write_there(address, &place, slot, &effect, key, deadline)
                        .await
                }
                Place::Nobody => Err(Failure::Nothing(Problem::no_leader(slot))),
            };
            let problem = match attempt {
                Ok(offset) => return Ok(offset),
                // The next leader knows what became of it.
                Err(Failure::Final(problem))
                    if key.is_some() && problem.code == ErrorCode::OutcomeUnknown =>
                {
                    unknown.insert(problem).clone()
                }
                Err(Failure::Final(problem)) => return Err(in_all(unknown, problem)),
                Err(Failure::Nothing(problem)) => problem,
            };
            let looked = self.look_again(slot, place, problem, deadline).await;
            looked.map_err(|problem| in_all(unknown.take(), problem))?;
        }
    }

    /// Reads a key, linearizably, at the leader of its slot.
    pub(super) async fn read(
        &self,
        key: &Bytes,
        deadline: Instant,
    ) -> Result<Option<Versioned>, Problem> {
        let slot = self.slot(key);
        loop {
            let place = self.slots.place(slot);
            let attempt = match &place {
                Place::Here => self.read_here(slot, key, deadline).await,
                Place::Node { address, .. } => {
                    self.read_there(address, &place, slot, key, deadline).await
                }
                Place::Nobody => Err(Failure::Nothing(Problem::no_leader(slot))),
            };
            match attempt {
                Ok(found) => return Ok(found),
                Err(Failure::Final(problem)) => return Err(problem),
                Err(Failure::Nothing(problem)) => {
                    self.look_again(slot, place, problem, deadline).await?;
                }
            }
        }
    }

    /// Waits for another place than `seen`; `no_leader` with the last reason when the time is over.
    pub(super) async fn look_again(
        &self,
        slot: SlotId,
        seen: Place,
        problem: Problem,
        deadline: Instant,
    ) -> Result<(), Problem> {
        let until = match seen {
            Place::Nobody => deadline,
            Place::Here | Place::Node { .. } => {
                deadline.min(Instant::now() + Duration::from_millis(LOOK_AGAIN_MS))
            }
        };
        let _ = self.slots.place_changed(slot, seen, until).await;
        if Instant::now() < deadline {
            return Ok(());
        }
        // What other nodes said on the way is for them; to the client, nobody led.
        Err(Problem::new(ErrorCode::NoLeader, problem.detail))
    }

    /// Reads a key as fresh as `level` asks for, at this node's own replica where that will do. With a token of what was seen
    /// at least, where that is known.
    pub(super) async fn read_at(
        &self,
        key: &Bytes,
        level: Level,
        deadline: Instant,
    ) -> Result<(Option<Versioned>, Option<Token>), Problem> {
        let slot = self.slot(key);
        let patience = deadline.min(Instant::now() + Duration::from_millis(TOKEN_WAIT_MS));
        let is_fresh = match level {
            Level::Linearizable => false,
            Level::Any => true,
            Level::Token(offset) => self.slots.has_applied(slot, offset, patience).await,
            Level::Bounded { within_ms } => self.is_fresh(slot, within_ms, patience).await,
        };
        if let Some(next) = self.slots.applied(slot).filter(|_| is_fresh) {
            let found = self.get(slot, key, deadline).await?;
            let seen = (next.0 > 0).then(|| self.token(slot, Offset(next.0 - 1)));
            return Ok((found, seen));
        }
        let found = self.read(key, deadline).await?;
        let seen = found.as_ref().map(|found| self.token(slot, found.version));
        Ok((found, seen))
    }

    /// Whether the replica here holds all that was acknowledged until `within_ms` milliseconds ago. It may take a moment to come as
    /// far as its leader said last.
    async fn is_fresh(&self, slot: SlotId, within_ms: u64, patience: Instant) -> bool {
        while let (Some(here), Some(wanted)) = (
            self.slots.applied(slot),
            self.slots.fresh_from(slot, within_ms),
        ) {
            // Asked again after a wait: what was fresh enough before may not be by now.
            if here >= wanted {
                return true;
            }
            let last = Offset(wanted.0 - 1);
            if !self.slots.has_applied(slot, last, patience).await {
                return false;
            }
        }
        false
    }

    /// The token of a record.
    pub(super) fn token(&self, slot: SlotId, offset: Offset) -> Token {
        Token {
            log_id: self.slots.log_id(),
            slot,
            offset,
        }
    }

    /// What the replica here has applied to a key.
    async fn get(
        &self,
        slot: SlotId,
        key: &Bytes,
        deadline: Instant,
    ) -> Result<Option<Versioned>, Problem> {
        let found = tokio::time::timeout_at(deadline, self.store.get(slot, key)).await;
        Ok(found.map_err(|_| too_late("reading from PostgreSQL"))??)
    }

    pub(super) async fn write_here(
        &self,
        slot: SlotId,
        effect: Effect,
        key: Option<&IdempotencyKey>,
        deadline: Instant,
    ) -> Result<Offset, Failure> {
        let effects = vec![effect];
        let idempotency = key.map(|key| key.with(&effects));
        let written = self.slots.write(slot, effects, idempotency, deadline).await;
        written.map_err(|error| Failure::from(Problem::from(error)))
    }

    pub(super) async fn read_here(
        &self,
        slot: SlotId,
        key: &Bytes,
        deadline: Instant,
    ) -> Result<Option<Versioned>, Failure> {
        loop {
            let permit = self.slots.read(slot, deadline).await;
            let permit = permit.map_err(|error| Failure::from(Problem::from(error)))?;
            let found = self.get(slot, key, deadline).await;
            let found = found.map_err(Failure::Final)?;
            if permit.confirm(self.clock.now_ns()) {
                return Ok(found);
            }
            if Instant::now() >= deadline {
                return Err(Failure::Nothing(Problem::no_leader(slot)));
            }
        }
    }

    async fn write_there(
        &self,
        address: &str,
        place: &Place,
        slot: SlotId,
        effect: &Effect,
        key: Option<&IdempotencyKey>,
        deadline: Instant,
    ) -> Result<Offset, Failure> {
        let path = internal::write_path(slot);
        let body = internal::encode_effect(effect);
        let header = key.map(IdempotencyKey::header);
        let asked = self.ask(address, &path, header, body, deadline);
        let patience = async {
            self.slots
                .place_changed(slot, place.clone(), deadline)
                .await;
            // With a key the next leader can be asked at once.
            if key.is_none() {
                tokio::time::sleep(Duration::from_millis(AFTER_CHANGE_MS)).await;
            }
        };
        let answer = tokio::select! {
            biased;
            answer = asked => answer,
            () = patience => Err(PeerError::NoAnswer {
                address: address.to_owned(),
                reason: "the slot has another leader now".to_owned(),
            }),
        };
        let unknown = |why: &str| Failure::Final(Problem::outcome_unknown(slot, why));
        let outcome = match answer {
            Ok((StatusCode::OK, body)) => {
                internal::decode_offset(&body).ok_or_else(|| unknown("its answer is malformed"))
            }
            Ok((_, body)) => Err(Problem::from_body(&body)
                .map_or_else(|| unknown("its answer is malformed"), Failure::from)),
            Err(error @ PeerError::NeverSent { .. }) => Err(Failure::Nothing(Problem::new(
                ErrorCode::NoLeader,
                error.to_string(),
            ))),
            Err(error @ PeerError::NoAnswer { .. }) => Err(unknown(&error.to_string())),
        };
        self.count_forward(outcome.as_ref().err());
        outcome
    }

    async fn read_there(
        &self,
        address: &str,
        place: &Place,
        slot: SlotId,
        key: &Bytes,
        deadline: Instant,
    ) -> Result<Option<Versioned>, Failure> {
        let path = internal::read_path(slot);
        let nothing = |why: String| Failure::Nothing(Problem::new(ErrorCode::NoLeader, why));
        let answer = tokio::select! {
            biased;
            answer = self.ask(address, &path, None, key.clone(), deadline) => answer,
            _ = self.slots.place_changed(slot, place.clone(), deadline) => {
                return Err(nothing(format!("slot {slot} changed its leader")));
            }
        };
        let outcome = match answer {
            Ok((StatusCode::OK, body)) => internal::decode_found(&body)
                .ok_or_else(|| nothing(format!("the answer of {address} is malformed"))),
            Ok((_, body)) => Err(Problem::from_body(&body).map_or_else(
                || nothing(format!("{address} did not answer")),
                Failure::from,
            )),
            Err(error) => Err(nothing(error.to_string())),
        };
        self.count_forward(outcome.as_ref().err());
        outcome
    }

    async fn ask(
        &self,
        address: &str,
        path: &str,
        header: Option<(HeaderName, HeaderValue)>,
        body: Bytes,
        deadline: Instant,
    ) -> Result<(StatusCode, Bytes), PeerError> {
        let response = self
            .peers
            .send(address, Method::POST, path, header, body, deadline)
            .await?;
        let status = response.status();
        let body = Peers::body(address, response, ANSWER_BYTES_MAX, deadline).await?;
        Ok((status, body))
    }

    fn count_forward(&self, failure: Option<&Failure>) {
        let outcome = match failure {
            None => "ok",
            Some(Failure::Final(problem)) if problem.code == ErrorCode::OutcomeUnknown => "unknown",
            Some(Failure::Final(_)) => "refused",
            Some(Failure::Nothing(_)) => "nothing",
        };
        self.metrics
            .rest
            .forwards
            .get_or_create(&ForwardLabels { outcome })
            .inc();
    }
}

impl Failure {
    pub(super) fn into_problem(self) -> Problem {
        match self {
            Self::Nothing(problem) | Self::Final(problem) => problem,
        }
    }
}

/// Whether a problem may be met by another attempt. Between nodes it means the same as here.
impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        match problem.code {
            ErrorCode::NotLeader | ErrorCode::NoLeader => Self::Nothing(problem),
            ErrorCode::EmptyKey
            | ErrorCode::BadEncoding
            | ErrorCode::NotText
            | ErrorCode::BadRequest
            | ErrorCode::KeyTooLong
            | ErrorCode::ValueTooLong
            | ErrorCode::IdempotencyKeyReused
            | ErrorCode::UnknownPath
            | ErrorCode::MethodNotAllowed
            | ErrorCode::Overloaded
            | ErrorCode::LogUnavailable
            | ErrorCode::StoreUnavailable
            | ErrorCode::NoSnapshot
            | ErrorCode::SlotFrozen
            | ErrorCode::DeadlineExceeded
            | ErrorCode::OutcomeUnknown => Self::Final(problem),
        }
    }
}

/// What is to be said of all attempts together, when the last one ended with `problem`: an earlier one whose fate is not known
/// may have taken effect, or may still. Only a key that belongs to another request rules that out.
fn in_all(unknown: Option<Problem>, problem: Problem) -> Problem {
    let decided = problem.code == ErrorCode::IdempotencyKeyReused;
    unknown.filter(|_| !decided).unwrap_or(problem)
}

/// The time is over; nothing was written.
pub(super) fn too_late(doing: &str) -> Problem {
    Problem::new(
        ErrorCode::DeadlineExceeded,
        format!("the time was over while {doing}"),
    )
}
