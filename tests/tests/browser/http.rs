//! What a browser can't be made to send.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use coffer_tests::node::Place;

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> &str {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(": "));
        headers.find(|(key, _)| key.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }
}

/// Sends a request with these headers and none besides but its length; `host` and `origin` are the console's own unless they stand there.
pub(crate) fn send(origin: &str, request: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let host = origin.split_once("://").unwrap().1;
    let mut text =
        format!("{request} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in [("host", host), ("origin", origin)] {
        if !headers.iter().any(|(given, _)| *given == name) {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut stream = TcpStream::connect(host).unwrap();
    stream.write_all(format!("{text}\r\n{body}").as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Reply { status, head: head.to_owned(), body: body.to_owned() }
}

/// What forms are sent as.
pub(crate) const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

/// A session without a browser.
pub(crate) struct Session {
    pub(crate) origin: String,
    /// The header that shows whose it is.
    pub(crate) cookie: String,
    pub(crate) csrf: String,
}

impl Session {
    pub(crate) fn open(place: &Place) -> Self {
        let link = place.ok(&["console"]);
        let (origin, code) = link.trim().split_once("/login#").unwrap();
        let entered = send(origin, "POST /login", &[FORM], &format!("code={code}"));
        assert_eq!((entered.status, entered.header("location")), (303, "/"), "{entered:?}");
        let cookie = entered.header("set-cookie").split(';').next().unwrap().to_owned();
        let page = send(origin, "GET /kms", &[("cookie", &cookie)], "").body;
        let (_, csrf) = page.split_once("name=\"csrf\" value=\"").expect("a form");
        let csrf = csrf.split('"').next().unwrap().to_owned();
        Self { origin: origin.to_owned(), cookie, csrf }
    }

    /// Sends a request with the session's cookie.
    pub(crate) fn send(&self, request: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let cookie = [("cookie", self.cookie.as_str())];
        send(&self.origin, request, &[&cookie, headers].concat(), body)
    }
}
