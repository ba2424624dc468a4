"""./vla serve: a checkpoint as a policy server in openpi's websocket format."""

import os
from dataclasses import dataclass

from vla_bringup.console import make_console


@dataclass(frozen=True)
class Options:
    """Options of the server."""

    model: str  # checkpoint folder or name
    host: str = '127.0.0.1'
    port: int = 8000
    clients: int = 1
    device: str = 'cpu'
    engine: str = 'auto'
    threads: int = 0


def run_serve(options: Options) -> bool:
    """Load the model and serve it until Ctrl-C; return True. Raises ValueError or FileNotFoundError with the remedy."""
    from vla_model.loading import LoadOptions, load, scheme_of
    from vla_model.remote.openpi import KEY
    from vla_model.remote.serve import check_address, run

    if scheme_of(options.model):
        raise ValueError(f'{options.model} is served already: give the folder of a checkpoint')
    check_address(options.host, os.environ.get(KEY, ''))  # before the model, which takes long
    console = make_console()
    console.print(f'loading {options.model} ...')
    image_engine = 'auto' if options.engine == 'auto' else 'eager'
    how = LoadOptions(
        options.device, threads=options.threads, engine=options.engine, image_dtype='auto', image_engine=image_engine
    )
    policy = load(options.model, how)
    try:
        policy.warm_up()
        run(policy, options.host, options.port, options.clients, lambda text: console.print(text, markup=False))
    except KeyboardInterrupt:
        console.print('ended')
    finally:
        policy.close()
    return True
