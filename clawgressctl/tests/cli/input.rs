//! Files that can't be used: each is refused with the file's name, a line, a column, the line itself and what to do, before
//! anything is asked of an agent.

use std::path::{Path, PathBuf};

use super::{check, ctl};

struct Files(tempfile::TempDir);

impl Files {
    fn write(&self, name: &str, bytes: &[u8]) -> String {
        let path: PathBuf = self.0.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        path.to_str().expect("text").to_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_file_is_told_with_its_place() {
    let files = Files(tempfile::tempdir().expect("directory"));
    let run = async |arguments: &[&str]| {
        ctl(Path::new("/nonexistent/admin.sock"), arguments).output().await.expect("run")
    };
    let good = files.write(
        "good.cedar",
        b"@id(\"a\")\npermit (principal, action == Action::\"http\", resource in HostSet::\"x\");\n",
    );
    let idp = "issuer = \"https://idp.test\"\naudiences = [\"g\"]\nalgorithms = [\"RS256\"]\n[mapping]\nagent = { from = \"sub\" }\n";
    let settings = files.write("idp.toml", idp.as_bytes());
    let set = |settings: &str, keys: &str| {
        ["issuer", "set", "x", "--settings", settings, "--keys", keys].map(str::to_owned)
    };
    let checked = |policy: &str| ["policy", "check", policy].map(str::to_owned).to_vec();
    let with_sets = |sets: &str| ["policy", "check", &good, "--sets", sets].map(str::to_owned).to_vec();
    let jwks = files.write("jwks.json", b"{\"keys\": []}");
    let torn = files.write("torn.json", b"{\"keys\": [\n {\"kty\": \"RSA\", ]}");
    for (arguments, place, said) in [
        (
            checked(&files.write("l1.cedar", b"@id(\"a\")\n// \xff\npermit")),
            "l1.cedar:2:4: ",
            "save the file as UTF-8",
        ),
        (checked(&files.write("p.cedar", b"@id(\"a\") permit (principal")), "p.cedar:1:27: ", "expected"),
        (
            with_sets(&files.write("s.toml", b"[hosts]\nx = [\"a.test\", 5]\n")),
            "s.toml:2:16: ",
            "expected a string",
        ),
        (
            with_sets(&files.write("t.toml", b"[hosts]\nx = [\"a.test\",\n \"b c\"]\n")),
            "t.toml:3:2: ",
            "`b c` is not a host",
        ),
        (
            with_sets(
                &files.write("n.toml", b"[hosts]\nx = [\"a.test\"]\n[networks]\nn = [\"10.0.0.1/8\"]\n"),
            ),
            "n.toml:4:6: ",
            "write `10.0.0.0/8`",
        ),
        (set(&settings, &torn).to_vec(), "torn.json:2:17: ", "this is not JSON"),
        (
            set(&files.write("a.toml", idp.replace("RS256", "HS256").as_bytes()), &jwks).to_vec(),
            "a.toml:3:15: ",
            "unknown variant `HS256`",
        ),
        (
            set(&files.write("b.toml", idp.replace("audiences", "audience").as_bytes()), &jwks).to_vec(),
            "b.toml:2:1: ",
            "unknown field `audience`",
        ),
        (set(&files.write("c.toml", b"issuer = \n"), &jwks).to_vec(), "c.toml:1:", ""),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let refused = run(&arguments).await;
        for part in [place, said, "^"] {
            check(&refused, 1, "", part);
        }
    }
}

/// An authority's certificate, whose key nobody has.
pub const AUTHORITY: &str = "-----BEGIN CERTIFICATE-----\n\
    MIIBbjCCARWgAwIBAgIUKnDKN5T4K6Y2jmQruOmmkC7gHqkwCgYIKoZIzj0EAwIw\n\
    DTELMAkGA1UEAwwCY2EwHhcNMjYxMTI2MjMxNTQ0WhcNMzYxMTIzMjMxNTQ0WjAN\n\
    MQswCQYDVQQDDAJjYTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABAECP0rqV3P1\n\
    WWukKEh2JX3Bp6CG59sjGThLja2j9hM9xEXSSNwhMfkow6dInumJiQFt/Qe6+DnZ\n\
    0sZOzkt5qZ6jUzBRMB0GA1UdDgQWBBSvN3FkuVVbc+CzL+iN3oFmBON6nDAfBgNV\n\
    HSMEGDAWgBSvN3FkuVVbc+CzL+iN3oFmBON6nDAPBgNVHRMBAf8EBTADAQH/MAoG\n\
    CCqGSM49BAMCA0cAMEQCIFHyLlIaGh7V9yINAlsWzZLpS9uc+JDOjn1gi//+sTKG\n\
    AiBf3mttBlQibBCWvCzfXYikIc/nmcvixhtp1APLf8Hjlg==\n\
    -----END CERTIFICATE-----\n";

/// The certificate, the list or the key, and not only that there is one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_certificate_or_a_key_is_told_with_its_place() {
    let files = Files(tempfile::tempdir().expect("directory"));
    let run = async |arguments: &[&str]| {
        ctl(Path::new("/nonexistent/admin.sock"), arguments).output().await.expect("run")
    };
    let section =
        |label: &str, body: &str| format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
    let mapping = "[mapping]\nagent = { from = \"dns\" }\n";
    let settings = files.write("leaf.toml", format!("revocation = \"leaf\"\n{mapping}").as_bytes());
    let good = files.write("good.pem", AUTHORITY.as_bytes());
    let lines = AUTHORITY.lines().count();
    let (second, list) = (section("CERTIFICATE", "MAA="), section("X509 CRL", "MAA="));
    let authority = |certificates: &str, lists: &str| {
        [
            "authority",
            "set",
            "x",
            "--settings",
            &settings,
            "--certificates",
            certificates,
            "--revocation-lists",
            lists,
        ]
        .map(str::to_owned)
        .to_vec()
    };
    let lists = files.write("lists.pem", list.as_bytes());
    let no_ca = files.write("no-ca.pem", format!("{AUTHORITY}{second}").as_bytes());
    let torn = files.write("torn.pem", format!("{AUTHORITY}-----BEGIN CERTIFICATE-----\nMAA=\n").as_bytes());
    let odd = files.write("odd.pem", list.replace("MAA=", "M A=").as_bytes());
    let key = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    let private = files.write(
        "private.json",
        format!("{{\"keys\":[\n {key},\n {{\"kty\":\"oct\",\"k\":\"AAAA\"}}]}}").as_bytes(),
    );
    let idp = "issuer = \"https://idp.test\"\naudiences = [\"g\"]\nalgorithms = [\"EdDSA\"]\n";
    let claims = "[mapping]\nagent = { from = \"sub\" }\n";
    let idp_settings = files.write("idp.toml", format!("{idp}{claims}").as_bytes());
    let provider = files.write(
        "provider.toml",
        format!("{idp}[provider]\nstale_s_max = 60\nca_file = \"no-ca.pem\"\n{claims}").as_bytes(),
    );
    let domain =
        files.write("domain.toml", b"domain = \"example.test\"\n[mapping]\nagent = { from = \"path\" }\n");
    let bundle =
        files.write("bundle.json", b"{\"keys\":[\n  {\"kty\":\"EC\",\"use\":\"x509-svid\",\"x5c\":[]}]}");
    let issuer = |settings: &str, keys: &[&str]| {
        [&["issuer", "set", "x", "--settings", settings], keys]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect()
    };
    let domain = ["trust-domain", "set", "x", "--settings", &domain, "--bundle", &bundle].map(str::to_owned);
    let no_ca_place = format!("no-ca.pem:{}:1: ", lines + 1);
    let cases: [(Vec<String>, &str, &str); 7] = [
        (authority(&no_ca, &lists), &no_ca_place, "trusted certificate 2 is not"),
        (authority(&torn, &lists), &format!("torn.pem:{}:1: ", lines + 1), "not PEM"),
        (authority(&good, &lists), "lists.pem:1:1: ", "revocation list 1 can't be used"),
        (authority(&good, &odd), "odd.pem:2:1: ", "revocation lists are not PEM"),
        (issuer(&idp_settings, &["--keys", &private]), "private.json:3:2: ", "private or symmetric key"),
        (issuer(&provider, &[]), &no_ca_place, "trusted certificate 2 is not"),
        (domain.to_vec(), "bundle.json:2:3: ", "exactly one certificate"),
    ];
    for (arguments, place, said) in cases {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let refused = run(&arguments).await;
        for part in [place, said, "^"] {
            check(&refused, 1, "", part);
        }
    }
}

/// What settings hold themselves, and the key of theirs that is wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_within_settings_is_told_with_its_place() {
    let files = Files(tempfile::tempdir().expect("directory"));
    let idp = "issuer = \"https://idp.test\"\naudiences = [\"g\"]\nalgorithms = [\"EdDSA\"]\n";
    let claims = "[mapping]\nagent = { from = \"sub\" }\n";
    let second = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    let key = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    let keys = files.write("keys.json", key.as_bytes());
    let lines = AUTHORITY.lines().count();
    let inline =
        format!("{idp}[provider]\nstale_s_max = 60\nca = \"\"\"\n{AUTHORITY}{second}\"\"\"\n{claims}");
    let inline = files.write("inline.toml", inline.as_bytes());
    let inline_place = format!("inline.toml:{}:1: ", 6 + lines + 1);
    let skewed = files.write("skewed.toml", format!("{idp}skew_s = 100000\n{claims}").as_bytes());
    let endpoint = format!(
        "domain = \"example.test\"\n[mapping]\nagent = {{ from = \"path\" }}\n[source.endpoint]\nurl = \"https://b.test\"\nca = '''\n{AUTHORITY}{second}'''\n"
    );
    let endpoint = files.write("endpoint.toml", endpoint.as_bytes());
    let endpoint_place = format!("endpoint.toml:{}:1: ", 6 + lines + 1);
    let cases: [(Vec<&str>, &str, &str); 3] = [
        (vec!["issuer", "set", "x", "--settings", &inline], &inline_place, "trusted certificate 2 is not"),
        (
            vec!["issuer", "set", "x", "--settings", &skewed, "--keys", &keys],
            "skewed.toml:4:1: ",
            "`skew_s` is more than",
        ),
        (
            vec!["trust-domain", "set", "x", "--settings", &endpoint],
            &endpoint_place,
            "trusted certificate 2 is not",
        ),
    ];
    for (arguments, place, said) in cases {
        let refused = ctl(Path::new("/nonexistent/admin.sock"), &arguments).output().await.expect("run");
        for part in [place, said, "^"] {
            check(&refused, 1, "", part);
        }
    }
}
