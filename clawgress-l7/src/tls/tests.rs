//! The proxy's files and its handshake, by what is wrong with them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use super::*;

fn files(directory: &Path) -> ProxyTls {
    let made = rcgen::generate_simple_self_signed(["proxy.test".to_owned()]).expect("certificate");
    let path = |name: &str| directory.join(name);
    fs::write(path("cert"), made.cert.pem()).expect("write");
    fs::write(path("key"), made.signing_key.serialize_pem()).expect("write");
    open_to(&path("key"), 0o600);
    ProxyTls { listen: vec![], certificate: path("cert"), key: path("key") }
}

fn open_to(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
}

#[test]
fn files_that_are_refused() {
    let directory = tempfile::tempdir().expect("directory");
    let right = files(directory.path());
    let refused = |files: &ProxyTls| format!("{:#}", Terminal::new(files).expect_err("refused"));
    Terminal::new(&right).expect("right");
    for mode in [0o400, 0o640, 0o440] {
        open_to(&right.key, mode);
        Terminal::new(&right).expect("closed to others");
    }
    for mode in [0o604, 0o602, 0o620, 0o610, 0o644, 0o601] {
        open_to(&right.key, mode);
        assert!(refused(&right).contains("is open to others"), "{mode:o}");
    }
    open_to(&right.key, 0o600);
    let other = tempfile::tempdir().expect("directory");
    let other = files(other.path());
    let with = |certificate: &PathBuf, key: &PathBuf| ProxyTls {
        listen: vec![],
        certificate: certificate.clone(),
        key: key.clone(),
    };
    assert!(refused(&with(&other.certificate, &right.key)).contains("can't be used together"));
    open_to(&right.certificate, 0o600);
    assert!(refused(&with(&right.key, &right.key)).contains("there is no certificate in"));
    assert!(refused(&with(&right.certificate, &right.certificate)).contains("there is no private key in"));
    let nowhere = directory.path().join("nowhere");
    assert!(refused(&with(&nowhere, &right.key)).contains("No such file"));
    let large = directory.path().join("large");
    fs::write(&large, vec![b'\n'; limit::TLS_FILE_BYTES + 1]).expect("write");
    assert!(refused(&with(&large, &right.key)).contains("has more than 65536 bytes"));
}

#[tokio::test]
async fn a_handshake_has_its_time() {
    let directory = tempfile::tempdir().expect("directory");
    let terminal = Terminal::new(&files(directory.path())).expect("terminal");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    // The beginning of a hello, and silence, more of it, the end, or something else.
    let cases: [(&[u8], bool, Result<bool, DropReason>); 4] = [
        (&[22, 3, 1, 2, 0, 1], false, Err(DropReason::Timeout)),
        (&[], false, Err(DropReason::Timeout)),
        (&[], true, Ok(false)),
        (b"GET / HTTP/1.1\r\n", false, Err(DropReason::TlsMalformed)),
    ];
    for (bytes, ends, expected) in cases {
        let mut client = TcpStream::connect(address).await.expect("connect");
        let (stream, _) = listener.accept().await.expect("accept");
        client.write_all(bytes).await.expect("write");
        if ends {
            client.shutdown().await.expect("shutdown");
        }
        let deadline = Instant::now() + Duration::from_millis(200);
        let accepted = terminal.accept(stream, deadline).await.map(|accepted| accepted.is_some());
        assert_eq!(accepted, expected, "{bytes:?}");
    }
}
