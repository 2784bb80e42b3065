//! A small HTTP/1.1 client that says exactly how far a request came: refused before it was sent, broken after, answered.
//!
//! Library clients retry, pool and hide that; here it is what is tested. One [`Connection`] is one kept-open connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// Longest wait for a connection: the loopback answers at once, also with a refusal.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// Longest wait for bytes of an answer: more than the store's own deadline of 10 s, so that its answer is seen.
const READ_LIMIT: Duration = Duration::from_secs(20);
/// Most bytes of one header line.
const HEADER_LINE_MAX: u64 = 64 * 1024;

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first header of that (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// No connection came to be: the request was never sent.
    NotConnected(io::Error),
    /// The connection broke, or went silent, after the request was sent: it may have taken effect.
    Broken(io::Error),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotConnected(error) => write!(f, "no connection: {error}"),
            Self::Broken(error) => write!(f, "the connection broke after the request: {error}"),
        }
    }
}

impl std::error::Error for Failure {}

/// One kept-open connection.
pub struct Connection {
    authority: String,
    stream: BufReader<TcpStream>,
    usable: bool,
}

impl Connection {
    /// Connects to a base URL such as `http://127.0.0.1:8080`.
    pub fn open(base: &str) -> Result<Self, Failure> {
        Self::open_within(base, READ_LIMIT)
    }

    /// The same, with another longest wait for bytes of an answer.
    pub fn open_within(base: &str, limit: Duration) -> Result<Self, Failure> {
        let authority = base
            .trim_start_matches("http://")
            .trim_end_matches('/')
            .to_owned();
        let connect = || {
            let address = authority
                .to_socket_addrs()?
                .next()
                .ok_or(io::ErrorKind::NotFound)?;
            let stream = TcpStream::connect_timeout(&address, CONNECT_LIMIT)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(limit))?;
            stream.set_write_timeout(Some(READ_LIMIT))?;
            Ok(BufReader::new(stream))
        };
        let stream = connect().map_err(Failure::NotConnected)?;
        Ok(Self {
            authority,
            stream,
            usable: true,
        })
    }

    /// Whether another request can go over this connection.
    pub fn is_usable(&self) -> bool {
        self.usable
    }

    /// Sends a request and reads its answer. `target` goes out as it is, also when it is malformed.
    pub fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer, Failure> {
        self.usable = false;
        let answer = self
            .exchange(method, target, headers)
            .map_err(Failure::Broken)?;
        self.usable = answer
            .header("connection")
            .is_none_or(|value| value != "close");
        Ok(answer)
    }

    fn exchange(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
    ) -> io::Result<Answer> {
        let mut head = format!("{method} {target} HTTP/1.1\r\nhost: {}\r\n", self.authority);
        for (name, value) in headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        head.push_str("\r\n");
        self.stream.get_mut().write_all(head.as_bytes())?;
        let status = self.status()?;
        let headers = self.headers()?;
        let mut answer = Answer {
            status,
            headers,
            body: Vec::new(),
        };
        let bodiless = method == "HEAD" || status == 204 || status == 304;
        if !bodiless {
            answer.body = self.body(&answer)?;
        }
        Ok(answer)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        let read = (&mut self.stream)
            .take(HEADER_LINE_MAX)
            .read_line(&mut line)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    fn status(&mut self) -> io::Result<u16> {
        let line = self.line()?;
        let status = line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok());
        status.ok_or_else(|| malformed(&line))
    }

    fn headers(&mut self) -> io::Result<Vec<(String, String)>> {
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(headers);
            }
            let (name, value) = line.split_once(':').ok_or_else(|| malformed(&line))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    fn body(&mut self, answer: &Answer) -> io::Result<Vec<u8>> {
        if answer
            .header("transfer-encoding")
            .is_some_and(|value| value.contains("chunked"))
        {
            return self.chunks();
        }
        let mut body = Vec::new();
        if let Some(length) = answer.header("content-length") {
            let length: u64 = length.parse().map_err(|_| malformed(length))?;
            let read = (&mut self.stream).take(length).read_to_end(&mut body)?;
            if read as u64 != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        } else {
            self.stream.read_to_end(&mut body)?;
        }
        Ok(body)
    }

    /// A chunked body ends with an empty chunk; one that ends without it was broken off.
    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let digits = line.split(';').next().unwrap_or_default();
            let length = u64::from_str_radix(digits, 16).map_err(|_| malformed(&line))?;
            let read = (&mut self.stream).take(length).read_to_end(&mut body)?;
            if read as u64 != length || !self.line()?.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if length == 0 {
                return Ok(body);
            }
        }
    }
}

/// One request over a connection of its own.
pub fn once(base: &str, method: &str, target: &str) -> Result<Answer, Failure> {
    Connection::open(base)?.request(method, target, &[])
}

fn malformed(line: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("malformed answer: {line:?}"),
    )
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Serves the given bytes to one connection and closes it.
    fn serve(bytes: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback takes listeners");
        let base = format!("http://{}", listener.local_addr().expect("it is bound"));
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the test connects");
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).expect("the test sends");
            stream.write_all(bytes).expect("the test reads");
        });
        base
    }

    #[test]
    fn a_whole_answer() {
        let base = serve(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nX: y\r\n\r\nno");
        let answer = once(&base, "GET", "/").expect("an answer");
        assert_eq!((answer.status, answer.text().as_str()), (404, "no"));
        assert_eq!(answer.header("x"), Some("y"));
    }

    #[test]
    fn a_stream_that_is_broken_off_is_seen() {
        let whole = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        assert_eq!(
            once(&serve(whole), "GET", "/").expect("an answer").body,
            b"abc"
        );
        let broken = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
        assert!(matches!(
            once(&serve(broken), "GET", "/"),
            Err(Failure::Broken(_))
        ));
        let short = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc";
        assert!(matches!(
            once(&serve(short), "GET", "/"),
            Err(Failure::Broken(_))
        ));
    }

    #[test]
    fn a_closed_port_is_no_broken_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback takes listeners");
        let base = format!("http://{}", listener.local_addr().expect("it is bound"));
        drop(listener);
        assert!(matches!(
            once(&base, "GET", "/"),
            Err(Failure::NotConnected(_))
        ));
    }
}
