//! How it looks: a picture of every screen and dialog, light and dark, wide and narrow, below `screenshots` in the build folder; each fits
//! its width, and axe-core finds nothing in it.

use std::fs;
use std::io::Cursor;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coffer_tests::kms::{Kind, Kms};
use coffer_tests::node::{Place, program};
use dev_vault::Fault;
use serde_json::{Value, json};
use testkit::tree;

use crate::console::Console;

/// The environment variable with the path of axe-core's script.
const AXE: &str = "COFFER_TEST_AXE";

/// Those that the documents show.
const IN_DOCS: [&str; 4] = [
    "overview-1280-light",
    "new-kms-configure-1280-light",
    "filesystems-1280-dark",
    "filesystem-1280-light",
];

/// A wide window, and the narrowest that is served, each with its height.
const SIZES: [(u32, u32); 2] = [(1280, 900), (360, 740)];

/// Something to look at: its name, its page, and what is done there first.
type Screen = (&'static str, &'static str, fn(&Console));

const NOTHING: fn(&Console) = |_| ();

/// A node to which nothing was done yet.
const NEW: [Screen; 8] = [
    ("new-overview", "/", NOTHING),
    ("new-kms", "/kms", NOTHING),
    ("new-kms-configure", "/kms", |console| console.press("Configure KMS")),
    ("new-kms-configure-more", "/kms", |console| {
        console.press("Configure KMS");
        console.press("More");
    }),
    ("new-kms-configure-refused", "/kms", |console| {
        console.press("Configure KMS");
        console.fill("URL", "http://127.0.0.1:9");
        console.fill("Key name", "coffer");
        console.fill("API token", "hvs.x");
        console.press("Update");
        console.wrong("URL");
    }),
    ("new-filesystems", "/filesystems", NOTHING),
    ("new-filesystems-create", "/filesystems", |console| console.press("Create filesystem")),
    ("new-jobs", "/jobs", NOTHING),
];

/// One at work.
const USED: [Screen; 26] = [
    ("overview", "/", NOTHING),
    ("kms", "/kms", NOTHING),
    ("kms-update", "/kms", |console| console.press("Update KMS")),
    ("kms-reset", "/kms", |console| {
        console.press("Reset KMS");
        console.press("Downgrade to local wrapping");
    }),
    ("kms-checked", "/kms", |console| console.press("Check now")),
    ("kms-rehearsed", "/kms", |console| console.press("Rehearse now")),
    ("kms-impact", "/kms?impact=key", NOTHING),
    ("filesystems", "/filesystems", NOTHING),
    ("filesystems-create", "/filesystems", |console| console.press("Create filesystem")),
    ("filesystems-create-refused", "/filesystems", |console| {
        console.press("Create filesystem");
        console.fill("Name", "home");
        console.press("Create");
        console.wrong("Name");
    }),
    ("filesystem", "/filesystems/home", NOTHING),
    ("filesystem-locked", "/filesystems/shut", NOTHING),
    ("filesystem-lock", "/filesystems/home", |console| console.press("Lock")),
    ("filesystem-verify", "/filesystems/home", |console| console.press("Verify")),
    ("filesystem-rekey", "/filesystems/home", |console| console.press("Re-encrypt")),
    ("filesystem-import", "/filesystems/home", |console| console.press("Import")),
    ("filesystem-export", "/filesystems/home", |console| console.press("Export")),
    ("filesystem-delete", "/filesystems/home", |console| console.press("Delete")),
    ("filesystem-delete-refused", "/filesystems/home", |console| {
        console.press("Delete");
        console.fill("Type home to delete it", "hom");
        console.press("Delete");
        console.wrong("Type home to delete it");
    }),
    ("files", "/filesystems/home/files", NOTHING),
    ("filesystem-unknown", "/filesystems/none", NOTHING),
    ("jobs", "/jobs", NOTHING),
    ("job", "/jobs", |console| {
        console.press("import");
        console.sees("What could not be done");
    }),
    ("audit", "/audit", NOTHING),
    ("audit-followed", "/audit", |console| console.press("Follow the chain now")),
    ("no-page", "/nowhere", NOTHING),
];

/// Outside.
const OUTSIDE: [Screen; 2] = [
    ("login", "/login", NOTHING),
    ("login-refused", "/login", |console| {
        console.fill("Code", "guess");
        console.press("Open the console");
    }),
];

#[test]
fn a_new_node_looks_well_in_light() {
    new_node("light");
}

#[test]
fn a_new_node_looks_well_in_dark() {
    new_node("dark");
}

#[test]
fn a_node_at_work_looks_well_in_light() {
    node_at_work("light");
}

#[test]
fn a_node_at_work_looks_well_in_dark() {
    node_at_work("dark");
}

fn new_node(scheme: &str) {
    let place = Place::new();
    let _node = place.start();
    let console = Console::open(&place);
    let mut found = walk(&console, scheme, &NEW);
    console.press("Log out");
    found.extend(walk(&console, scheme, &OUTSIDE));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// With filesystems of all kinds, keys of two versions, and jobs that are done, partly done, and wait.
fn node_at_work(scheme: &str) {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let source = place.path("source");
    tree::small_files(&source, 20).unwrap();
    let _socket = UnixListener::bind(source.join("socket")).unwrap();
    let _node = place.start();
    place.ok(&["fs", "create", "attic", "--allow-no-kms"]);
    place.set_vault(&kms);
    place.until("the keys have moved", || {
        place.json(&["job", "list"])["jobs"][0]["state"] == "done"
    });
    for name in ["home", "projects", "shut"] {
        place.ok(&["fs", "create", name]);
    }
    place.ok(&["fs", "lock", "shut"]);
    place.ok(&["fs", "import", "home", source.to_str().unwrap()]);
    kms.rotate();
    place.ok(&["fs", "kms", "rewrap", "projects"]);
    kms.embedded().faults().inject(Fault::Drop.on("transit/rewrap/"));
    let console = Console::open(&place);
    console.page("/kms");
    console.press("Rewrap keys");
    console.sees("rewrap waits");
    let found = walk(&console, scheme, &USED);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Takes the pictures, and answers what is wrong with what is in them.
fn walk(console: &Console, scheme: &str, screens: &[Screen]) -> Vec<String> {
    let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
    console.devtools("Emulation.setEmulatedMedia", json!({ "features": [feature] }));
    let axe = axe();
    let mut found = Vec::new();
    for (name, page, act) in screens {
        resize(console, SIZES[0]);
        console.page(page);
        act(console);
        for size in SIZES {
            resize(console, size);
            let shown = format!("{name}-{}-{scheme}", size.0);
            picture(console, &shown, size.0);
            if IN_DOCS.contains(&shown.as_str()) {
                found.extend(is_old(console, &shown));
            }
            found.extend(
                too_wide(console).map(|what| format!("{shown}: wider than the window: {what}")),
            );
            console.script(&axe);
            let violations = console.slow_script(RUN_AXE);
            let violations = violations.as_array().unwrap().iter();
            found.extend(violations.map(|it| format!("{shown}: {}", it.as_str().unwrap())));
        }
    }
    found
}

fn resize(console: &Console, (width, height): (u32, u32)) {
    let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
    console.devtools("Emulation.setDeviceMetricsOverride", size);
}

/// The whole page; with a dialog open what the window shows.
fn picture(console: &Console, name: &str, width: u32) {
    let mut parameters = json!({ "format": "png" });
    if console.dialog().is_none() {
        let size = &console.devtools("Page.getLayoutMetrics", json!({}))["cssContentSize"];
        let clip = json!({ "x": 0, "y": 0, "width": width, "height": size["height"], "scale": 1 });
        parameters["clip"] = clip;
        parameters["captureBeyondViewport"] = json!(true);
    }
    keep(&screenshots(), name, &capture(console, parameters));
}

fn capture(console: &Console, parameters: Value) -> Vec<u8> {
    let taken = console.devtools("Page.captureScreenshot", parameters);
    STANDARD.decode(taken["data"].as_str().unwrap()).unwrap()
}

fn keep(folder: &Path, name: &str, png: &[u8]) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join(format!("{name}.png")), png).unwrap();
}

/// Whether the documents' picture of this screen shows another one. Times, ports and paths in it are others each time.
fn is_old(console: &Console, name: &str) -> Option<String> {
    const MAY_DIFFER: f64 = 0.2;
    let taken = capture(console, json!({ "format": "png" }));
    keep(&screenshots().join("docs"), name, &taken);
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/images");
    let part = match fs::read(images.join(format!("{name}.png"))) {
        Ok(kept) => differing_part(&kept, &taken),
        Err(_) => 1.0,
    };
    (part > MAY_DIFFER).then(|| {
        format!(
            "docs/images/{name}.png is old ({:.0} % differ): copy that of target/screenshots/docs",
            part * 100.0
        )
    })
}

/// Of two pictures, how much of their pixels is not the same.
fn differing_part(one: &[u8], other: &[u8]) -> f64 {
    let [one, other] = [one, other].map(|png| {
        let mut reader = png::Decoder::new(Cursor::new(png)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        (info.width, info.color_type.samples(), pixels)
    });
    if (one.0, one.1, one.2.len()) != (other.0, other.1, other.2.len()) {
        return 1.0;
    }
    let pixels = one.2.chunks(one.1).zip(other.2.chunks(one.1));
    let (mut all, mut differ) = (0_u32, 0_u32);
    for (one, other) in pixels {
        all += 1;
        differ += u32::from(one.iter().zip(other).any(|(a, b)| a.abs_diff(*b) > 24));
    }
    f64::from(differ) / f64::from(all.max(1))
}

fn screenshots() -> PathBuf {
    program().parent().unwrap().parent().unwrap().join("screenshots")
}

/// What is wider than the window, or than the dialog that it is in.
fn too_wide(console: &Console) -> Option<String> {
    let wide = console.script(
        r#"
        const roots = [document.documentElement, ...document.querySelectorAll("dialog[open]")];
        const root = roots.find((it) => it.scrollWidth > it.clientWidth);
        if (!root) return null;
        const edge = root.getBoundingClientRect().left + root.clientWidth;
        const wide = [...root.querySelectorAll("*")].filter((it) => it.getBoundingClientRect().right > edge + 1);
        return wide.map((it) => it.outerHTML.slice(0, 80)).slice(-3).join(" ") || root.tagName;
        "#,
    );
    wide.as_str().map(str::to_owned)
}

/// What axe-core finds, a line for each rule that is broken.
const RUN_AXE: &str = r#"
    const done = arguments[0];
    axe.run(document, { resultTypes: ["violations"] }).then(({ violations }) => done(violations.map(
        ({ id, help, nodes }) => `${id}: ${help}: ` + nodes.map((it) => `${it.html} (${it.failureSummary})`).join("; "),
    )), (error) => done([String(error)]));
"#;

fn axe() -> String {
    let path = std::env::var_os(AXE).map(PathBuf::from).filter(|path| path.is_file());
    let path = path.unwrap_or_else(|| {
        panic!("{AXE} names no axe-core: set it to the path that `cargo xtask browser` prints")
    });
    fs::read_to_string(path).unwrap()
}

#[test]
fn axe_finds_what_is_wrong() {
    let place = Place::new();
    let _node = place.start();
    let console = Console::open(&place);
    console.script("document.querySelector('main').insertAdjacentHTML('beforeend', '<img src=\"/none\"><input>')");
    console.script(&axe());
    let found: Value = console.slow_script(RUN_AXE);
    let found = found.to_string();
    assert!(found.contains("image-alt: ") && found.contains("label: "), "{found}");
}
