//! Request targets longer than the HTTP library takes (64 KiB): the classic `PUT` has its value in the query, up to 1 MiB of it,
//! which is 3 MiB when every byte is percent-encoded.
//!
//! [`LongQueryIo`] stands between the socket and the library. It follows the framing of HTTP/1.1 requests just enough to know
//! where a request line begins; when one is too long it takes the query out, keeps it aside and puts a header in its place that
//! names it, which [`Aside::claim`] turns back into the query. Everything else passes unchanged, and where the framing is not plain
//! (chunked bodies, odd lengths) the rest of the connection passes unchanged too.
//!
//! ```text
//!  Line ──short line──▶ Headers ──▶ Body(n) ──▶ Line …
//!   └─ too long ─▶ Query ─▶ Version ─┘  └─ not plain ─▶ Through
//! ```

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use axum::http::{HeaderMap, HeaderName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Request lines up to this pass unchanged, bytes: below what the library takes.
const LINE_BYTES_MAX: usize = 32_768;
/// Longest header line, bytes; a longer one is the library's to refuse.
const HEADER_LINE_BYTES_MAX: usize = 65_536;
/// Longest query, bytes: the largest value with every byte encoded, and room for other parameters.
const QUERY_BYTES_MAX: usize = 3 * crate::effect::VALUE_BYTES_MAX + 65_536;
/// Memory of all long queries of a process, bytes: 32 of the largest at a time.
const ROOM_BYTES: usize = 32 * QUERY_BYTES_MAX;
/// Bytes read from the socket at a time.
const READ_BYTES: usize = 16_384;
/// In place of the query.
const HEADER: HeaderName = HeaderName::from_static("kvcluster-long-query");

/// The query of a request whose target was too long for the library.
#[derive(Clone, Debug)]
pub(super) enum LongQuery {
    /// The query.
    Whole(Arc<Query>),
    /// Longer than any value can need; not kept.
    TooLong,
    /// The memory for long queries is full; not kept.
    NoRoom,
}

/// A query, and its place in the memory for long queries.
#[derive(Debug)]
pub(super) struct Query {
    bytes: Vec<u8>,
    room: Arc<Room>,
    reserved: usize,
}

impl Query {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Query {
    fn drop(&mut self) {
        self.room.used.fetch_sub(self.reserved, Ordering::Relaxed);
    }
}

/// The memory of all long queries of a server.
#[derive(Debug, Default)]
pub(super) struct Room {
    used: AtomicUsize,
}

impl Room {
    fn reserve(&self, bytes: usize) -> bool {
        let add = |used: usize| used.checked_add(bytes).filter(|&sum| sum <= ROOM_BYTES);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .is_ok()
    }
}

/// The queries of one connection that the library has not asked for yet, with their numbers.
#[derive(Debug, Default)]
pub(super) struct Aside {
    queries: Mutex<VecDeque<(u64, LongQuery)>>,
}

impl Aside {
    /// The query that the headers name, once; removes the header. A number that we did not give names nothing.
    pub(super) fn claim(&self, headers: &mut HeaderMap) -> Option<LongQuery> {
        let number: u64 = headers.remove(HEADER)?.to_str().ok()?.parse().ok()?;
        let mut queries = self.queries.lock().unwrap_or_else(PoisonError::into_inner);
        let place = queries.iter().position(|(at, _)| *at == number)?;
        queries.remove(place).map(|(_, query)| query)
    }

    fn put(&self, number: u64, query: LongQuery) {
        self.queries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back((number, query));
    }
}

#[derive(Debug)]
enum Part {
    /// In a request line that is short so far; it is held back.
    Line,
    /// In a long query.
    Query(Kept),
    /// After a long query: the line's last word.
    Version,
    Headers(Framing),
    Body(u64),
    Through,
}

#[derive(Debug)]
enum Kept {
    Query(Query),
    TooLong,
    NoRoom,
}

#[derive(Clone, Copy, Debug)]
enum Framing {
    Length(Option<u64>),
    NotPlain,
}

/// Rewrites the bytes of one connection. Pure.
#[derive(Debug)]
struct Rewriter {
    part: Part,
    /// The current line, as far as it is held back or looked at.
    line: Vec<u8>,
    out: Vec<u8>,
    aside: Arc<Aside>,
    room: Arc<Room>,
    numbers: u64,
}

impl Rewriter {
    fn new(aside: Arc<Aside>, room: Arc<Room>) -> Self {
        Self {
            part: Part::Line,
            line: Vec::new(),
            out: Vec::new(),
            aside,
            room,
            numbers: 0,
        }
    }

    /// Takes what came from the socket; what goes on is in `out` afterwards.
    fn push(&mut self, mut input: &[u8]) {
        while !input.is_empty() {
            let taken = match &mut self.part {
                Part::Line => self.push_line(input),
                Part::Query(_) => self.push_query(input),
                Part::Version => self.push_version(input),
                Part::Headers(framing) => {
                    let framing = *framing;
                    self.push_header(framing, input)
                }
                Part::Body(left) => {
                    let taken = usize::try_from(*left)
                        .unwrap_or(usize::MAX)
                        .min(input.len());
                    *left -= taken as u64;
                    if *left == 0 {
                        self.part = Part::Line;
                    }
                    self.out.extend_from_slice(&input[..taken]);
                    taken
                }
                Part::Through => {
                    self.out.extend_from_slice(input);
                    input.len()
                }
            };
            input = &input[taken..];
        }
    }

    /// No more input comes: what is held back goes on as it is.
    fn finish(&mut self) {
        if matches!(self.part, Part::Line) {
            self.out.append(&mut self.line);
        }
        self.part = Part::Through;
    }

    fn push_line(&mut self, input: &[u8]) -> usize {
        let (taken, ended) = line_end(input);
        self.line.extend_from_slice(&input[..taken]);
        if self.line.len() > LINE_BYTES_MAX {
            self.begin_query();
        } else if ended {
            // An empty line before the request line is allowed.
            let empty = self.line.iter().all(|byte| matches!(byte, b'\r' | b'\n'));
            if !empty {
                self.part = Part::Headers(Framing::Length(None));
            }
            self.out.append(&mut self.line);
        }
        taken
    }

    fn begin_query(&mut self) {
        let Some(mark) = self.line.iter().position(|&byte| byte == b'?') else {
            // A path that long is no key; the library refuses it.
            self.finish();
            return;
        };
        let held = self.line.split_off(mark + 1);
        self.line.pop();
        self.out.append(&mut self.line);
        let room = Arc::clone(&self.room);
        self.part = Part::Query(Kept::Query(Query {
            bytes: Vec::new(),
            room,
            reserved: 0,
        }));
        self.push(&held);
    }

    fn push_query(&mut self, input: &[u8]) -> usize {
        let Part::Query(kept) = &mut self.part else {
            unreachable!("called in a query");
        };
        let end = input
            .iter()
            .position(|&byte| matches!(byte, b' ' | b'\r' | b'\n'));
        let taken = end.unwrap_or(input.len());
        kept.push(&input[..taken]);
        if end.is_some() {
            let kept = std::mem::replace(kept, Kept::TooLong);
            self.numbers += 1;
            self.aside.put(self.numbers, kept.into_long_query());
            self.part = Part::Version;
        }
        taken
    }

    fn push_version(&mut self, input: &[u8]) -> usize {
        let (taken, ended) = line_end(input);
        self.out.extend_from_slice(&input[..taken]);
        if ended {
            let header = format!("{HEADER}: {}\r\n", self.numbers);
            self.out.extend_from_slice(header.as_bytes());
            self.part = Part::Headers(Framing::Length(None));
        }
        taken
    }

    fn push_header(&mut self, framing: Framing, input: &[u8]) -> usize {
        let (taken, ended) = line_end(input);
        self.out.extend_from_slice(&input[..taken]);
        self.line.extend_from_slice(&input[..taken]);
        if self.line.len() > HEADER_LINE_BYTES_MAX {
            self.line.clear();
            self.part = Part::Through;
        } else if ended {
            let line = std::mem::take(&mut self.line);
            let line = line.trim_ascii_end();
            self.part = if line.is_empty() {
                match framing {
                    Framing::Length(None | Some(0)) => Part::Line,
                    Framing::Length(Some(length)) => Part::Body(length),
                    Framing::NotPlain => Part::Through,
                }
            } else {
                Part::Headers(framing.with(line))
            };
        }
        taken
    }
}

impl Kept {
    fn push(&mut self, bytes: &[u8]) {
        let Self::Query(query) = self else {
            return;
        };
        if query.bytes.len() + bytes.len() > QUERY_BYTES_MAX {
            *self = Self::TooLong;
        } else if query.room.reserve(bytes.len()) {
            query.reserved += bytes.len();
            query.bytes.extend_from_slice(bytes);
        } else {
            *self = Self::NoRoom;
        }
    }

    fn into_long_query(self) -> LongQuery {
        match self {
            Self::Query(query) => LongQuery::Whole(Arc::new(query)),
            Self::TooLong => LongQuery::TooLong,
            Self::NoRoom => LongQuery::NoRoom,
        }
    }
}

impl Framing {
    fn with(self, line: &[u8]) -> Self {
        let Self::Length(seen) = self else {
            return self;
        };
        let colon = line
            .iter()
            .position(|&byte| byte == b':')
            .unwrap_or(line.len());
        let name = &line[..colon];
        if name.eq_ignore_ascii_case(b"content-length") {
            let value = line.get(colon + 1..).unwrap_or_default().trim_ascii();
            let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            let length = std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse().ok());
            match length {
                Some(length) if digits && seen.is_none() => Self::Length(Some(length)),
                _ => Self::NotPlain,
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding")
            || name.eq_ignore_ascii_case(b"upgrade")
            || line.first().is_some_and(u8::is_ascii_whitespace)
        {
            Self::NotPlain
        } else {
            self
        }
    }
}

/// How much of `input` belongs to the current line, and whether the line ends there.
fn line_end(input: &[u8]) -> (usize, bool) {
    let end = input.iter().position(|&byte| byte == b'\n');
    (end.map_or(input.len(), |end| end + 1), end.is_some())
}

/// A connection whose long queries are set aside.
pub(super) struct LongQueryIo<T> {
    inner: T,
    rewriter: Rewriter,
    /// How much of the rewriter's `out` was given away.
    given: usize,
}

impl<T> LongQueryIo<T> {
    pub(super) fn new(inner: T, aside: Arc<Aside>, room: Arc<Room>) -> Self {
        Self {
            inner,
            rewriter: Rewriter::new(aside, room),
            given: 0,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for LongQueryIo<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.given == this.rewriter.out.len() {
            this.rewriter.out.clear();
            this.given = 0;
            let mut space = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                this.rewriter.finish();
                if this.rewriter.out.is_empty() {
                    return Poll::Ready(Ok(()));
                }
            }
            this.rewriter.push(read.filled());
        }
        let waiting = &this.rewriter.out[this.given..];
        let count = waiting.len().min(buffer.remaining());
        buffer.put_slice(&waiting[..count]);
        this.given += count;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for LongQueryIo<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
#[path = "long_query_tests.rs"]
mod tests;
