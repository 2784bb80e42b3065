//! A load of writes over kept-open connections that keeps every answer.
//!
//! Each connection takes the next row, writes it by classic `PUT` and goes on until it is acknowledged. Every attempt of
//! a row writes a value of its own (but the first writes the row's), so that a later look at the store tells which one
//! took effect.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::http::{Answer, Connection, Failure};
use crate::percent::encode;
use crate::poll;

/// Pause after a refused or broken attempt: long enough that a store in an election is not flooded, short against it.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// What became of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered with success.
    Acknowledged,
    /// Answered with an error that says: no effect. Or there was nobody to connect to.
    None(String),
    /// Answered with an error that says: unknown. Or the connection broke.
    Unknown(String),
    /// An answer that breaks the contract.
    Wrong(String),
}

/// One attempt to write a row.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Index of the row.
    pub row: usize,
    /// What was to be written.
    pub value: String,
    /// What became of it.
    pub outcome: Outcome,
    /// When it began, from the begin of the load.
    pub begin: Duration,
    /// How long the answer took.
    pub took: Duration,
}

/// How to load.
#[derive(Clone, Debug)]
pub struct Load {
    /// Base URLs; connections are spread over them and go to the next one when one cannot be reached.
    pub targets: Vec<String>,
    /// Connections, each with a thread of its own.
    pub connections: usize,
    /// How long one row may be tried.
    pub row_limit: Duration,
}

/// All attempts, in no order.
#[derive(Debug)]
pub struct Report {
    /// The attempts.
    pub attempts: Vec<Attempt>,
    /// How long the load took.
    pub took: Duration,
}

/// Counts acknowledged rows while the load runs.
#[derive(Debug, Default)]
pub struct Progress(AtomicUsize);

impl Progress {
    /// Rows that are acknowledged so far.
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Load {
    /// Writes all rows; fails when one is not acknowledged in time or an answer breaks the contract.
    pub fn run(&self, rows: &[(String, String)], progress: &Progress) -> Result<Report> {
        let begin = Instant::now();
        let next = AtomicUsize::new(0);
        let client = |connection| {
            let mut client = Client::new(self, connection, begin);
            let written = client.write_rows(&next, rows, progress);
            if written.is_err() {
                // The others end too.
                next.store(rows.len(), Ordering::Relaxed);
            }
            written.map(|()| client.attempts)
        };
        let ended: Vec<_> = thread::scope(|scope| {
            let start = |connection| scope.spawn(move || client(connection));
            let running: Vec<_> = (0..self.connections).map(start).collect();
            running
                .into_iter()
                .map(thread::ScopedJoinHandle::join)
                .collect()
        });
        let mut attempts = Vec::with_capacity(rows.len());
        for ended in ended {
            attempts.append(&mut ended.ok().context("a connection's thread panicked")??);
        }
        Ok(Report {
            attempts,
            took: begin.elapsed(),
        })
    }
}

/// Something that a test does while a load runs.
pub struct Step<'a> {
    /// When: at this percentage of the rows.
    pub percent: usize,
    /// What.
    pub act: Box<dyn Fn() -> Result<()> + 'a>,
}

impl<'a> Step<'a> {
    /// `act` at `percent` of the load.
    pub fn new(percent: usize, act: impl Fn() -> Result<()> + 'a) -> Self {
        Self {
            percent,
            act: Box::new(act),
        }
    }
}

impl Load {
    /// Runs the load, and each step when the load has come that far; a step must be reached within the row limit.
    pub fn run_with(&self, rows: &[(String, String)], steps: &[Step<'_>]) -> Result<Report> {
        let progress = Progress::default();
        thread::scope(|scope| {
            let running = scope.spawn(|| self.run(rows, &progress));
            for step in steps {
                let wanted = rows.len() * step.percent / 100;
                poll::until(
                    self.row_limit,
                    &format!("{} % of the load", step.percent),
                    || {
                        ensure!(!running.is_finished(), "the load has ended");
                        Ok((progress.get() >= wanted).then_some(()))
                    },
                )?;
                (step.act)()?;
            }
            running.join().ok().context("the load panicked")?
        })
    }
}

/// One connection's worth of load.
struct Client<'a> {
    load: &'a Load,
    target: usize,
    connection: Option<Connection>,
    begin: Instant,
    attempts: Vec<Attempt>,
}

impl<'a> Client<'a> {
    fn new(load: &'a Load, index: usize, begin: Instant) -> Self {
        Self {
            load,
            target: index,
            connection: None,
            begin,
            attempts: Vec::new(),
        }
    }

    fn write_rows(
        &mut self,
        next: &AtomicUsize,
        rows: &[(String, String)],
        progress: &Progress,
    ) -> Result<()> {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some((key, value)) = rows.get(index) else {
                return Ok(());
            };
            self.write_row(index, key, value)?;
            progress.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn write_row(&mut self, row: usize, key: &str, value: &str) -> Result<()> {
        let row_begin = Instant::now();
        for attempt in 0.. {
            let value = attempt_value(value, attempt);
            let begin = Instant::now();
            let outcome = judge(self.put(key, &value));
            self.attempts.push(Attempt {
                row,
                value,
                outcome: outcome.clone(),
                begin: begin - self.begin,
                took: begin.elapsed(),
            });
            match outcome {
                Outcome::Acknowledged => return Ok(()),
                Outcome::Wrong(why) => bail!("PUT of {key:?} got an answer out of contract: {why}"),
                Outcome::None(why) | Outcome::Unknown(why) => {
                    if row_begin.elapsed() > self.load.row_limit {
                        bail!(
                            "{key:?} is not written after {:?}: {why}",
                            self.load.row_limit
                        );
                    }
                    thread::sleep(RETRY_PAUSE);
                }
            }
        }
        unreachable!("the attempts do not end by themselves")
    }

    fn put(&mut self, key: &str, value: &str) -> Result<Answer, Failure> {
        let target = put_target(key, value);
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let answer = connection.request("PUT", &target, &[]);
        if connection.is_usable() {
            self.connection = Some(connection);
        }
        answer
    }

    /// Connects to the own target, or to the next one for the attempt that follows.
    fn connect(&mut self) -> Result<Connection, Failure> {
        let base = &self.load.targets[self.target % self.load.targets.len()];
        let connection = Connection::open(base);
        if connection.is_err() {
            self.target += 1;
        }
        connection
    }
}

/// The request target of a classic PUT.
pub fn put_target(key: &str, value: &str) -> String {
    format!(
        "/key/{}?value={}",
        encode(key.as_bytes()),
        encode(value.as_bytes())
    )
}

fn attempt_value(value: &str, attempt: u32) -> String {
    if attempt == 0 {
        value.to_owned()
    } else {
        format!("{value} (attempt {attempt})")
    }
}

/// What an answer to a PUT means; strict about what an error must carry.
pub fn judge(answer: Result<Answer, Failure>) -> Outcome {
    judge_as(answer, |answer| {
        answer.status == 200 && answer.body == b"PUT success"
    })
}

/// What an answer to any request means; `is_success` knows the answers that mean success.
pub fn judge_as(
    answer: Result<Answer, Failure>,
    is_success: impl FnOnce(&Answer) -> bool,
) -> Outcome {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error @ Failure::NotConnected(_)) => return Outcome::None(error.to_string()),
        Err(error @ Failure::Broken(_)) => return Outcome::Unknown(error.to_string()),
    };
    match answer.status {
        _ if is_success(&answer) => Outcome::Acknowledged,
        429 | 503 => {
            judge_problem(&answer).unwrap_or_else(|error| Outcome::Wrong(error.to_string()))
        }
        status => Outcome::Wrong(format!("status {status}: {}", answer.text())),
    }
}

fn judge_problem(answer: &Answer) -> Result<Outcome> {
    let status = answer.status;
    let body = answer.text();
    if answer
        .header("retry-after")
        .and_then(|value| value.parse::<u32>().ok())
        .is_none()
    {
        bail!("a {status} without Retry-After in seconds: {body}");
    }
    if !answer
        .header("content-type")
        .is_some_and(|kind| kind.starts_with("application/problem+json"))
    {
        bail!("a {status} that is no application/problem+json: {body}");
    }
    let problem: serde_json::Value = serde_json::from_slice(&answer.body)?;
    let Some(code) = problem["code"].as_str() else {
        bail!("a problem without code: {body}")
    };
    if problem["status"].as_u64() != Some(u64::from(status)) || !problem["retryable"].is_boolean() {
        bail!("a problem without its status, or without retryable: {body}");
    }
    let what = format!("{status} {code}");
    match problem["effect"].as_str() {
        Some("none") => Ok(Outcome::None(what)),
        Some("unknown") => Ok(Outcome::Unknown(what)),
        _ => bail!("a problem that does not say whether it took effect: {body}"),
    }
}

impl Report {
    /// Attempts with that kind of outcome.
    pub fn count(&self, is_kind: impl Fn(&Outcome) -> bool) -> usize {
        self.attempts
            .iter()
            .filter(|attempt| is_kind(&attempt.outcome))
            .count()
    }

    /// Acknowledged attempts; one for each row.
    pub fn acknowledged(&self) -> usize {
        self.count(|outcome| *outcome == Outcome::Acknowledged)
    }

    /// Attempts whose effect is unknown.
    pub fn unknown(&self) -> usize {
        self.count(|outcome| matches!(outcome, Outcome::Unknown(_)))
    }

    /// The errors by their text, with how often each came.
    pub fn errors(&self) -> Vec<(String, usize)> {
        let mut errors = std::collections::BTreeMap::new();
        for attempt in &self.attempts {
            let text = match &attempt.outcome {
                Outcome::Acknowledged => continue,
                Outcome::None(why) => format!("no effect: {why}"),
                Outcome::Unknown(why) => format!("effect unknown: {why}"),
                Outcome::Wrong(why) => format!("out of contract: {why}"),
            };
            *errors.entry(text).or_insert(0) += 1;
        }
        errors.into_iter().collect()
    }

    /// The p-th percentile of the acknowledged attempts' times, `p` in 0 ..= 100.
    pub fn percentile(&self, p: usize) -> Duration {
        let acknowledged = self
            .attempts
            .iter()
            .filter(|attempt| attempt.outcome == Outcome::Acknowledged);
        let mut times: Vec<Duration> = acknowledged.map(|attempt| attempt.took).collect();
        times.sort_unstable();
        let last = times.len().saturating_sub(1);
        times.get(last * p / 100).copied().unwrap_or_default()
    }

    /// Longest time in which nothing was acknowledged.
    pub fn longest_silence(&self) -> Duration {
        let acknowledged = self
            .attempts
            .iter()
            .filter(|attempt| attempt.outcome == Outcome::Acknowledged);
        let mut ends: Vec<Duration> = acknowledged
            .map(|attempt| attempt.begin + attempt.took)
            .collect();
        ends.sort_unstable();
        ends.windows(2)
            .map(|pair| pair[1].saturating_sub(pair[0]))
            .max()
            .unwrap_or_default()
    }

    /// Acknowledged rows per second.
    pub fn per_second(&self) -> f64 {
        let rows = u32::try_from(self.acknowledged()).expect("a load is below four billion rows");
        f64::from(rows) / self.took.as_secs_f64()
    }

    /// One line for people.
    pub fn line(&self) -> String {
        format!(
            "{} rows in {:.1} s ({:.0}/s), p50 {:.1} ms, p99 {:.1} ms, longest silence {:.2} s, errors {:?}",
            self.acknowledged(),
            self.took.as_secs_f64(),
            self.per_second(),
            self.percentile(50).as_secs_f64() * 1e3,
            self.percentile(99).as_secs_f64() * 1e3,
            self.longest_silence().as_secs_f64(),
            self.errors()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Answer {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let headers = headers.iter().map(owned).collect();
        Answer {
            status,
            headers,
            body: body.as_bytes().to_vec(),
        }
    }

    const PROBLEM: [(&str, &str); 2] = [
        ("retry-after", "1"),
        ("content-type", "application/problem+json"),
    ];

    #[test]
    fn success_is_to_the_letter() {
        assert_eq!(
            judge(Ok(answer(200, &[], "PUT success"))),
            Outcome::Acknowledged
        );
        assert!(matches!(
            judge(Ok(answer(200, &[], "PUT success\n"))),
            Outcome::Wrong(_)
        ));
        assert!(matches!(judge(Ok(answer(500, &[], ""))), Outcome::Wrong(_)));
    }

    #[test]
    fn an_error_says_whether_it_took_effect() {
        let body = |effect: &str| {
            format!(r#"{{"status":503,"code":"no_leader","retryable":true,"effect":"{effect}"}}"#)
        };
        let judged = |effect: &str| judge(Ok(answer(503, &PROBLEM, &body(effect))));
        assert_eq!(judged("none"), Outcome::None("503 no_leader".to_owned()));
        assert_eq!(
            judged("unknown"),
            Outcome::Unknown("503 no_leader".to_owned())
        );
        assert!(matches!(judged("maybe"), Outcome::Wrong(_)));
        let without_retry = answer(503, &PROBLEM[1..], &body("none"));
        assert!(matches!(judge(Ok(without_retry)), Outcome::Wrong(_)));
        let other_status = answer(429, &PROBLEM, &body("none"));
        assert!(matches!(judge(Ok(other_status)), Outcome::Wrong(_)));
    }

    #[test]
    fn a_broken_connection_is_unknown_and_a_refused_one_is_not() {
        let error = || std::io::ErrorKind::ConnectionReset.into();
        assert!(matches!(
            judge(Err(Failure::Broken(error()))),
            Outcome::Unknown(_)
        ));
        assert!(matches!(
            judge(Err(Failure::NotConnected(error()))),
            Outcome::None(_)
        ));
    }

    #[test]
    fn silence_is_between_two_acknowledgements() {
        let attempt = |begin, outcome| Attempt {
            row: 0,
            value: String::new(),
            outcome,
            begin: Duration::from_secs(begin),
            took: Duration::from_secs(1),
        };
        let attempts = vec![
            attempt(0, Outcome::Acknowledged),
            attempt(2, Outcome::None(String::new())),
            attempt(6, Outcome::Acknowledged),
        ];
        let report = Report {
            attempts,
            took: Duration::from_secs(7),
        };
        assert_eq!(report.longest_silence(), Duration::from_secs(6));
        assert_eq!(report.percentile(99), Duration::from_secs(1));
    }
}
