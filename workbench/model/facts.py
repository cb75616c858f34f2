"""Tables of facts that the tasks ask for, and the words they are told with."""

# ruff: noqa: SIM905  (a table of words reads best as words)

from __future__ import annotations

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
ORDINALS = "first second third fourth".split()
ANIMALS = "cat dog horse cow pig sheep goat duck hen fox wolf bear lion tiger mouse frog".split()
FOODS = "bread rice soup cheese apples pears plums grapes beans fish cake honey eggs nuts".split()
COLOURS = "red blue green yellow black white brown pink grey orange".split()
THINGS = (
    "table chair lamp book pen cup plate spoon knife door window roof wall floor bed box bag coat "
    "hat shoe boat train plane car bike road river lake hill tree leaf rose stone sand snow rain "
    "wind cloud star moon sun fire gold iron glass paper clock bell drum song game ball rope ring "
    "key coin letter stamp map flag tower bridge garden forest island school market station"
).split()

CAPITALS = dict(
    pair.split(": ")
    for pair in (
        "France: Paris|Spain: Madrid|Italy: Rome|Germany: Berlin|Austria: Vienna|Norway: Oslo|"
        "Sweden: Stockholm|Finland: Helsinki|Denmark: Copenhagen|Poland: Warsaw|Greece: Athens|"
        "Portugal: Lisbon|Ireland: Dublin|Hungary: Budapest|Romania: Bucharest|Bulgaria: Sofia|"
        "Croatia: Zagreb|Serbia: Belgrade|Albania: Tirana|Turkey: Ankara|Russia: Moscow|"
        "Ukraine: Kyiv|Belgium: Brussels|Iceland: Reykjavik|Estonia: Tallinn|Latvia: Riga|"
        "Lithuania: Vilnius|Slovakia: Bratislava|Slovenia: Ljubljana|Cyprus: Nicosia|"
        "Malta: Valletta|Egypt: Cairo|Libya: Tripoli|Tunisia: Tunis|Algeria: Algiers|"
        "Morocco: Rabat|Ghana: Accra|Nigeria: Abuja|Kenya: Nairobi|Uganda: Kampala|"
        "Rwanda: Kigali|Zambia: Lusaka|Angola: Luanda|Senegal: Dakar|Mali: Bamako|Niger: Niamey|"
        "Somalia: Mogadishu|Sudan: Khartoum|Zimbabwe: Harare|Namibia: Windhoek|Iraq: Baghdad|"
        "Iran: Tehran|Syria: Damascus|Lebanon: Beirut|Jordan: Amman|Oman: Muscat|Qatar: Doha|"
        "Yemen: Sanaa|Afghanistan: Kabul|Pakistan: Islamabad|Nepal: Kathmandu|Bhutan: Thimphu|"
        "Bangladesh: Dhaka|Thailand: Bangkok|Vietnam: Hanoi|Laos: Vientiane|Mongolia: Ulaanbaatar|"
        "China: Beijing|Japan: Tokyo|Indonesia: Jakarta|Philippines: Manila|Australia: Canberra|"
        "Fiji: Suva|Canada: Ottawa|Cuba: Havana|Jamaica: Kingston|Haiti: Port-au-Prince|"
        "Peru: Lima|Chile: Santiago|Ecuador: Quito|Colombia: Bogota|Venezuela: Caracas|"
        "Uruguay: Montevideo|Paraguay: Asuncion|Brazil: Brasilia|Argentina: Buenos Aires|"
        "Guyana: Georgetown|Suriname: Paramaribo|Belize: Belmopan|Honduras: Tegucigalpa|"
        "Nicaragua: Managua"
    ).split("|")
)

_DEFINED_IN = (
    "argparse: ArgumentParser Namespace|ast: NodeVisitor literal_eval|"
    "asyncio: gather TaskGroup|base64: b64encode b85decode|bisect: insort bisect_left|"
    "calendar: monthrange isleap|collections: Counter OrderedDict deque namedtuple|"
    "configparser: ConfigParser|contextlib: suppress ExitStack contextmanager|copy: deepcopy|"
    "csv: DictReader writer|dataclasses: dataclass asdict|datetime: timedelta timezone|"
    "decimal: Decimal|difflib: SequenceMatcher unified_diff|enum: Enum IntFlag|"
    "fnmatch: fnmatchcase|fractions: Fraction|functools: partial lru_cache reduce wraps|"
    "glob: iglob|gzip: GzipFile|hashlib: sha256 md5|heapq: heappush nlargest|"
    "hmac: compare_digest|inspect: signature getsource|io: StringIO BytesIO|"
    "ipaddress: ip_address|itertools: chain islice product|json: loads dumps|"
    "logging: getLogger basicConfig|math: sqrt factorial gcd|mimetypes: guess_type|"
    "operator: itemgetter attrgetter|os: getcwd listdir|pathlib: Path PurePath|"
    "pickle: Unpickler|platform: machine|pprint: pprint|queue: Queue PriorityQueue|"
    "random: shuffle randint|re: finditer fullmatch|secrets: token_hex|sched: scheduler|"
    "shutil: copytree rmtree|signal: pthread_kill|socket: create_connection|"
    "sqlite3: register_adapter|statistics: median stdev|string: Template capwords|"
    "struct: unpack calcsize|subprocess: Popen check_output|"
    "tempfile: mkdtemp NamedTemporaryFile|textwrap: dedent fill|threading: Thread Semaphore|"
    "time: monotonic sleep|timeit: default_timer|traceback: format_exc|types: SimpleNamespace|"
    "typing: TypedDict Protocol|unittest: TestCase|uuid: uuid4|warnings: catch_warnings|"
    "weakref: WeakSet|zipfile: ZipFile|zlib: crc32 adler32"
)
MODULES = {
    name: module
    for module, names in (entry.split(": ") for entry in _DEFINED_IN.split("|"))
    for name in names.split()
}

OPPOSITES = dict(
    pair.split("-")
    for pair in (
        "hot-cold big-small tall-short fast-slow old-young good-bad happy-sad rich-poor hard-soft "
        "early-late light-dark full-empty open-closed wet-dry clean-dirty strong-weak high-low "
        "deep-shallow wide-narrow thick-thin loud-quiet near-far left-right up-down in-out "
        "first-last true-false begin-end push-pull buy-sell win-lose love-hate day-night "
        "north-south east-west summer-winter always-never before-after over-under inside-outside "
        "sweet-sour sharp-blunt brave-afraid safe-dangerous cheap-expensive simple-complex "
        "smooth-rough public-private sink-float arrive-leave"
    ).split()
)
