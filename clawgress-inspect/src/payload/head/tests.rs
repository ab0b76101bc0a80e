//! What heads carry; and how often ordinary ones look as if they carried data, as docs/detection.md has it.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use super::*;
use crate::encoded::Window;

const KEY: &str =
    "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n";
const DOCS: &str = include_str!("../../../../docs/detection.md");

/// A request's target, its host, and its fields.
struct Sent {
    host: String,
    target: String,
    fields: Vec<(&'static str, String)>,
}

fn look(host: &str, target: &str, fields: &[(&str, &str)]) -> Carries {
    let target = target.split_once('?').unwrap_or((target, ""));
    let fields = fields.iter().map(|(name, value)| (*name, value.as_bytes()));
    Head { host, target }.look(fields, Limits::default())
}

fn found(host: &str, target: &str, fields: &[(&str, &str)]) -> Vec<&'static str> {
    look(host, target, fields).findings.into_iter().collect()
}

#[test]
fn data_is_found_wherever_a_head_has_room_for_it() {
    let text = STANDARD.encode("user=alice&password=hunter2&note=nothing else");
    let escaped = text.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    assert_eq!(found("a.test", &format!("/?d={escaped}"), &[]), ["url_data"]);
    let plain = URL_SAFE_NO_PAD.encode("user=alice&password=hunter2&note=nothing else");
    assert_eq!(found("a.test", &format!("/c/{plain}/x.png"), &[]), ["url_data"]);
    assert_eq!(found("a.test", "/", &[("X-Trace", &text)]), ["header_data"]);
    assert_eq!(found("nbswy3dpeb3w64tmmqqhg2lt.a.test", "/", &[]), ["host_data"]);
    let opaque = "xK9dQ2mPz7RfLw3NvTb8YcHs".repeat(8);
    assert_eq!(found("a.test", &format!("/{opaque}"), &[]), ["url_data"]);
    assert_eq!(found("a.test", "/", &[("x-id", &opaque)]), ["header_data"]);
    assert!(found("a.test", &format!("/{}", &opaque[..96]), &[]).is_empty(), "an id");
}

#[test]
fn what_is_decoded_goes_through_the_same_detectors() {
    let code = URL_SAFE_NO_PAD.encode(KEY);
    assert_eq!(found("a.test", &format!("/?d={code}"), &[]), ["private_key", "url_data"]);
    assert_eq!(found("a.test", &format!("/{code}"), &[]), ["private_key", "url_data"]);
    assert_eq!(found("a.test", "/", &[("X-Note", &code)]), ["header_data", "private_key"]);
    let twice = URL_SAFE_NO_PAD.encode(STANDARD.encode(KEY));
    assert_eq!(found("a.test", &format!("/?d={twice}"), &[]), ["encoded_nested", "private_key", "url_data"]);
    assert_eq!(found("a.test", "/pay?card=4012888888881881", &[]), ["payment_card"]);
    assert!(found("a.test", "/items/4012888888881881", &[]).is_empty(), "an id");
    // A credential is data, and not whatever it is called.
    assert_eq!(found("a.test", "/", &[("Authorization", &format!("Bearer {code}"))]), Vec::<&str>::new());
    let long = STANDARD.encode(KEY.repeat(3));
    assert_eq!(found("a.test", "/", &[("Authorization", &format!("Bearer {long}"))]), ["private_key"]);
    assert_eq!(found("a.test", "/", &[("cookie", &format!("s={long}"))]), ["private_key"]);
    // What can't be read is data, and no reason to find nothing beside it.
    let bomb = STANDARD.encode(gzip(&vec![0; 4 << 20])).replace('+', "%2B");
    let beside = format!("/?x={bomb}&card=4012888888881881");
    assert_eq!(found("a.test", &beside, &[]), ["payment_card", "url_data"]);
    let packed = STANDARD.encode(gzip(b"card 4012888888881881")).replace('+', "%2B").replace('=', "%3D");
    for decoy in ["", &format!("p={}&", "a".repeat(33))] {
        let sent = found("a.test", &format!("/?{decoy}q={packed}"), &[]);
        assert!(sent.contains(&"payment_card"), "{decoy}: {sent:?}");
    }
    let padded = format!("/?p={}&card=4012888888881881", "a".repeat(9000));
    assert_eq!(found("a.test", &padded, &[]), ["payment_card"]);
    let many = "xK9dQ2mPz7RfLw3NvTb8YcHs; ".repeat(400);
    assert_eq!(found("a.test", "/", &[("cookie", &many)]), ["header_data"], "no credentials are so long");
    // Nor is any head too long.
    let sent = look("a.test", &format!("/?d={code}"), &[("x", "\u{1f}\u{8b}")]);
    assert!(sent.findings.contains("private_key"));
    look("a.test", &format!("/?{}", "a%".repeat(20_000)), &[("x", &"[".repeat(20_000))]);
}

#[test]
fn a_head_decodes_to_no_more_than_its_bound() {
    // Thrice packed, within the ratio of each: 64 KiB of these would come to gigabytes.
    let mut packed = vec![0; 3 << 20];
    for _ in 0..3 {
        packed = gzip(&packed);
    }
    let bomb = STANDARD.encode(&packed).replace('+', "%2B").replace('=', "%3D");
    let many: String = (0..200).map(|n| format!("&x{n}={bomb}")).collect();
    let sent = found("a.test", &format!("/?card=4012888888881881{many}"), &[]);
    assert!(sent.contains(&"payment_card") && sent.contains(&"url_data"), "{sent:?}");
}

#[test]
fn no_piece_is_hidden_behind_others() {
    let decoys: Vec<String> = (0..PIECES_MAX).map(|n| format!("xK9dQ2mPz7RfLw3N{n:04}vTb8")).collect();
    let sent = |id: &str| look("a.test", "/", &[("cookie", &decoys.join("; ")), ("x-id", id)]);
    let (one, other) = (sent("qK3dQ2mPz7RfLw3NvTb8YcHs"), sent("rK4dQ2mPz7RfLw3NvTb8YcHs"));
    assert_eq!((one.pieces.len(), other.pieces.len()), (PIECES_MAX, PIECES_MAX));
    assert_ne!(one.pieces.last(), other.pieces.last());
    assert_eq!(one.pieces[..PIECES_MAX - 1], other.pieces[..PIECES_MAX - 1]);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    out.write_all(bytes).expect("written");
    out.finish().expect("finished")
}

// === what ordinary heads look like ===

struct Drawn(u64);

impl Drawn {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next().to_be_bytes()[2]).collect()
    }

    fn of(&mut self, letters: &[u8], n: usize) -> String {
        (0..n)
            .map(|_| char::from(letters[usize::try_from(self.next() >> 8).unwrap() % letters.len()]))
            .collect()
    }

    fn word(&mut self, n: usize) -> String {
        self.of(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", n)
    }

    fn hex(&mut self, n: usize) -> String {
        self.of(b"0123456789abcdef", n)
    }

    fn uuid(&mut self) -> String {
        [8, 4, 4, 4, 12].map(|n| self.hex(n)).join("-")
    }

    fn code(&mut self, n: usize) -> String {
        let bytes = self.bytes(n);
        STANDARD.encode(bytes)
    }

    fn escaped(&mut self, n: usize) -> String {
        self.code(n).replace('+', "%2B").replace('/', "%2F").replace('=', "%3D")
    }

    fn jose(&mut self) -> String {
        let claims = format!(
            "{{\"iss\":\"https://id.test\",\"sub\":\"{}\",\"exp\":{}}}",
            self.uuid(),
            1_700_000_000 + self.next() % 100_000_000
        );
        let signature = self.bytes(256);
        let head = URL_SAFE_NO_PAD.encode("{\"alg\":\"RS256\",\"typ\":\"JWT\"}");
        format!("{head}.{}.{}", URL_SAFE_NO_PAD.encode(claims), URL_SAFE_NO_PAD.encode(signature))
    }

    fn text(&mut self, n: usize) -> String {
        const WORDS: [&str; 16] = [
            "user",
            "password",
            "is",
            "the",
            "launch",
            "code",
            "token",
            "for",
            "production",
            "and",
            "staging",
            "hunter2",
            "database",
            "at",
            "10.0.0.7",
            "secret",
        ];
        let mut text = String::new();
        while text.len() < n {
            text.push_str(WORDS[usize::try_from(self.next() >> 8).unwrap() % WORDS.len()]);
            text.push(' ');
        }
        text.truncate(n);
        text
    }

    fn signed(&mut self) -> String {
        let (id, signature) = (self.of(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16), self.hex(64));
        format!(
            "/reports/2026/summary.csv?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=ASIA{id}%2F20261127%2Feu-central-1%2Fs3%2Faws4_request&X-Amz-Date=20261127T120000Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&X-Amz-Signature={signature}"
        )
    }
}

/// Draws what is sent.
type Draw = fn(&mut Drawn) -> Sent;

fn to(host: &str, target: String) -> Sent {
    Sent { host: host.to_owned(), target, fields: Vec::new() }
}

fn with(fields: Vec<(&'static str, String)>) -> Sent {
    Sent { fields, ..to("api.test", "/v1/things".to_owned()) }
}

const ORDINARY: [(&str, Draw); 17] = [
    ("token of JOSE as `Authorization: Bearer`", |d| {
        with(vec![("authorization", format!("Bearer {}", d.jose()))])
    }),
    ("token of JOSE in a query", |d| to("app.test", format!("/magic?token={}", d.jose()))),
    ("API key in a query", |d| to("maps.test", format!("/v1/geocode?key=AIza{}&q=x", d.word(35)))),
    ("UUIDs in path and query", |d| {
        to("api.test", format!("/v1/users/{}/items?after={}", d.uuid(), d.uuid()))
    }),
    ("hashes of git in a path", |d| to("git.test", format!("/o/r/compare/{}...{}", d.hex(40), d.hex(40)))),
    ("identifiers of documents in a path", |d| to("docs.test", format!("/document/d/1{}/edit", d.word(43)))),
    ("signature of S3", |d| to("b.s3.test", d.signed())),
    ("signature of S3 with a session's token", |d| {
        let signed = d.signed();
        to("b.s3.test", format!("{signed}&X-Amz-Security-Token={}", d.escaped(600)))
    }),
    ("signature of Google's storage", |d| {
        to(
            "storage.test",
            format!("/b/o.csv?X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Signature={}", d.hex(512)),
        )
    }),
    ("signature of Azure's storage", |d| {
        to(
            "a.blob.test",
            format!("/c/o.csv?sv=2024-11-04&se=2026-11-28T00%3A00%3A00Z&sp=r&sig={}", d.escaped(32)),
        )
    }),
    ("policy of CloudFront", |d| {
        let policy = STANDARD.encode(format!(
            "{{\"Statement\":[{{\"Resource\":\"https://cdn.test/{}\",\"Condition\":{{}}}}]}}",
            d.uuid()
        ));
        to("cdn.test", format!("/v.mp4?Policy={}&Signature={}", policy.replace('=', "_"), d.word(344)))
    }),
    ("cursor that is JSON", |d| {
        let cursor = format!("{{\"id\":{},\"created_at\":\"2026-11-27\"}}", d.next() % 10_000_000);
        to("api.test", format!("/v1/items?cursor={}", URL_SAFE_NO_PAD.encode(cursor)))
    }),
    ("code and challenge of OAuth", |d| {
        let (code, state) = (d.word(64), d.word(32));
        let challenge = d.bytes(32);
        let challenge = URL_SAFE_NO_PAD.encode(challenge);
        to("id.test", format!("/authorize?code={code}&state={state}&code_challenge={challenge}"))
    }),
    ("search for words", |d| to("search.test", format!("/search?q={}", d.text(60).replace(' ', "+")))),
    ("session in a cookie", |d| {
        let session = format!("{{\"user_id\":{},\"csrf\":\"{}\"}}", d.next() % 10_000_000, d.word(32));
        let signature = d.bytes(20);
        let (session, signature) = (URL_SAFE_NO_PAD.encode(session), URL_SAFE_NO_PAD.encode(signature));
        with(vec![("cookie", format!("session={session}.{signature}; _ga=GA1.2.1234567890.1700000000"))])
    }),
    ("fields of an SDK", |d| {
        with(vec![
            ("user-agent", "OpenAI/Python 2.8.1".to_owned()),
            ("x-stainless-runtime-version", "3.13.1".to_owned()),
            ("x-request-id", d.uuid()),
            ("traceparent", format!("00-{}-{}-01", d.hex(32), d.hex(16))),
            ("if-none-match", format!("W/\"{}\"", d.code(32))),
            ("x-amz-content-sha256", d.hex(64)),
            ("idempotency-key", d.word(40)),
        ])
    }),
    ("hosts that content networks draw", |d| {
        to(&format!("d{}.cdn.test", d.of(b"0123456789abcdefghijklmnopqrstuvwxyz", 13)), "/".to_owned())
    }),
];

const DATA: [(&str, Draw); 8] = [
    ("48 bytes of text in base64, in a query", |d| {
        let text = d.text(48);
        to("evil.test", format!("/c?d={}", URL_SAFE_NO_PAD.encode(text)))
    }),
    ("the same in a path", |d| {
        let text = d.text(48);
        to("evil.test", format!("/p/{}.png", URL_SAFE_NO_PAD.encode(text)))
    }),
    ("the same in a field", |d| {
        let text = d.text(48);
        with(vec![("x-correlation", STANDARD.encode(text))])
    }),
    ("the same in hexadecimal digits, in a query", |d| {
        let text = d.text(48);
        to("evil.test", format!("/c?d={}", text.bytes().map(|b| format!("{b:02x}")).collect::<String>()))
    }),
    ("48 enciphered bytes in base64, in a query", |d| {
        let code = d.escaped(48);
        to("evil.test", format!("/c?d={code}"))
    }),
    ("600 of them", |d| {
        let code = d.escaped(600);
        to("evil.test", format!("/c?d={code}"))
    }),
    ("30 bytes in base32, in a label", |d| {
        let label = d.of(b"abcdefghijklmnopqrstuvwxyz234567", 48);
        to(&format!("{label}.evil.test"), "/".to_owned())
    }),
    ("15 bytes of text in base64, in a query", |d| {
        let text = d.text(15);
        to("evil.test", format!("/c?d={}", URL_SAFE_NO_PAD.encode(text)))
    }),
];

/// Of 1,000 heads of one kind those in which data is found; and after how many different ones within some minutes they are
/// found to be pieces, if they are.
fn measured((name, draw): (&str, Draw), out: &mut String) {
    let (mut drawn, mut hits) = (Drawn(0x2545_f491_4f6c_dd1d), 0);
    let (mut window, mut split) = (Window::default(), None);
    for n in 0..1000 {
        let Sent { host, target, fields } = draw(&mut drawn);
        let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let carries = look(&host, &target, &fields);
        hits += u32::from(!carries.findings.is_empty());
        let to = Head { host: &host, target: ("", "") };
        if n < 100 && window.noted(n, to.destination(), &carries.pieces) {
            split.get_or_insert(n + 1);
        }
    }
    let split = split.map_or("no".to_owned(), |n| n.to_string());
    let _ = writeln!(out, "| {name} | {}.{}% | {split} |", hits / 10, hits % 10);
}

#[test]
fn how_often_is_what_the_docs_say() {
    let mut table = String::from("| ordinary heads | found | `split_data` after |\n|---|---:|---:|\n");
    ORDINARY.into_iter().for_each(|kind| measured(kind, &mut table));
    table.push_str("\n| heads with data | found | `split_data` after |\n|---|---:|---:|\n");
    DATA.into_iter().for_each(|kind| measured(kind, &mut table));
    let told =
        DOCS.split_once("<!-- heads -->\n").and_then(|(_, rest)| rest.split_once("<!-- end of heads -->"));
    assert_eq!(told.map(|(told, _)| told), Some(&*table), "docs/detection.md should have:\n{table}");
}
