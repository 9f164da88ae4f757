//! Where the console is served, and how.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;

use coffer_tests::node::Place;

use crate::console::Console;
use crate::http::send;

#[test]
fn it_is_served_on_loopback_from_the_start_if_it_is_asked_to() {
    let place = Place::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut node = place.serve().args(["--listen", &free.to_string()]).spawn().unwrap();
    assert!(place.wait_for_socket());
    let origin = format!("http://{free}");
    place.until("it is served", || TcpStream::connect(free).is_ok());
    let looked = send(&origin, "GET /", &[], "");
    assert_eq!((looked.status, looked.header("location")), (303, "/login"));
    let page = send(&origin, "GET /login", &[], "");
    let policy = page.header("content-security-policy");
    assert!(policy.contains("default-src 'self'") && policy.contains("frame-ancestors 'none'"));
    assert_eq!(page.header("cache-control"), "no-store");
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert!(place.ok(&["console"]).starts_with(&origin));
    node.kill().unwrap();
    node.wait().unwrap();
}

#[test]
fn a_node_serves_no_network_until_the_console_is_asked_for() {
    let place = Place::new();
    let node = place.start();
    let listens = || {
        let sockets = fs::read_to_string(format!("/proc/{}/net/tcp", node.pid())).unwrap();
        let mine: Vec<String> = fs::read_dir(format!("/proc/{}/fd", node.pid()))
            .unwrap()
            .filter_map(|fd| Some(fs::read_link(fd.ok()?.path()).ok()?.display().to_string()))
            .collect();
        // The tenth column is the socket's inode, the fourth its state: 0A listens (proc_net(5)).
        sockets
            .lines()
            .skip(1)
            .filter(|line| {
                let columns: Vec<&str> = line.split_whitespace().collect();
                columns[3] == "0A" && mine.contains(&format!("socket:[{}]", columns[9]))
            })
            .count()
    };
    assert_eq!(listens(), 0);
    place.ok(&["console"]);
    assert_eq!(listens(), 1);
}

#[test]
fn beyond_loopback_it_takes_a_certificate() {
    let place = Place::new();
    let refused = place.serve().args(["--listen", "0.0.0.0:0"]).status().unwrap();
    assert_eq!(refused.code(), Some(2), "{}", place.log());
    assert!(
        place.log().contains("--tls-cert") && place.log().contains("not loopback"),
        "{}",
        place.log()
    );
}

#[test]
fn with_a_certificate_it_is_served_over_tls_alone() {
    let place = Place::new();
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (place.path("cert.pem"), place.path("key.pem"));
    fs::write(&certificate, issued.cert.pem()).unwrap();
    fs::write(&key, issued.signing_key.serialize_pem()).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let mut serve = place.serve();
    serve.args(["--listen", "0.0.0.0:0", "--console-host", "localhost"]);
    serve.arg("--tls-cert").arg(&certificate).arg("--tls-key").arg(&key);
    let mut node = serve.spawn().unwrap();
    assert!(place.wait_for_socket());
    let console = Console::open(&place);
    assert!(console.origin().starts_with("https://localhost:"), "{}", console.origin());
    let cookies = console.cookies();
    let [cookie] = &cookies[..] else { panic!("one cookie: {cookies:?}") };
    assert_eq!((cookie.name.as_str(), cookie.secure), ("__Host-coffer-session", Some(true)));
    console.press("KMS Configuration");
    console.sees("KMS is not set.");

    let (_, host) = console.origin().split_once("://").unwrap();
    let mut plain = TcpStream::connect(host.replace("localhost", "127.0.0.1")).unwrap();
    // It hangs up as soon as it sees that this is no TLS.
    let _ = write!(plain, "GET /login HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1.1 "), "{answer:?}");
    drop(console);
    node.kill().unwrap();
    node.wait().unwrap();
}
