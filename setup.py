"Everything about the package is read from settings.ini, which nbdev reads too."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser()
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(),
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='Apache-2.0',
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=find_packages(include=['miniai*']), include_package_data=False,
    package_data=dict(miniai=['weights/*','*.json']),
    python_requires='>='+cfg['min_python'], install_requires=cfg['requirements'].split(),
    extras_require=dict(dev=cfg['dev_requirements'].split(), app=cfg['app_requirements'].split(), serve=cfg['serve_requirements'].split()),
    entry_points=dict(nbdev=['miniai=miniai._modidx:d'],
                      console_scripts=['miniai=miniai.command:main','miniai-app=miniai.app:app_main','miniai-serve=miniai.serving:serve_main']),
)
